"""A run's results: the test split, read once, beside floors and oracle; and its figures."""

import json
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from linseqrec.evaluation import figures, floors
from linseqrec.evaluation.metrics import check_metric
from linseqrec.evaluation.ranks import in_words
from linseqrec.evaluation.result import EvaluationResult, selected_by
from linseqrec.training import distributed, workdir
from linseqrec.training.run import Run, SplitName
from linseqrec.training.step import TrainState


def data_title(run: Run, *others: Run) -> str:
    """A heading for runs on the same data: what the data are, and what a reader must know."""
    if run.source.world is not None:
        data = f"generated world {run.experiment.data.world!r} (synthetic data)"
    else:
        data = Path(run.experiment.data.folder).name
    protocol = [f"split {run.source.split.name}"]
    if run.experiment.data.request_time == "known":
        protocol.append("request time known")
    notes = dict.fromkeys(each.experiment.note for each in (run, *others))
    return "; ".join([data, *protocol, *filter(None, notes)])


def title_of_results(first: Mapping[str, Any], notes: Sequence[str]) -> str:
    """`data_title` of runs that have ended, from what they wrote.

    Args:
      first: The first run's `results.json`.
      notes: Each run's note, the first one's first.
    """
    title = first["title"].removeprefix(f"{first['name']} on ").removesuffix(f"; {notes[0]}")
    return "; ".join([title, *filter(None, dict.fromkeys(notes))])


def references(run: Run, split: SplitName) -> dict[str, EvaluationResult]:
    """What frames a model's result: the floors, and in a generated world the best score."""
    dataset, division = run.source.dataset, run.source.split
    evaluator = run.evaluator(split)
    scorers: dict[str, Any] = {"Popularity": floors.Popularity(dataset, division)}
    if not dataset.card["time"]["order_only"]:
        scorers["Recent popularity"] = floors.RecentPopularity(dataset, division, share=0.1)
    scorers["Markov"] = floors.Markov(dataset, division)
    scorers["Decayed Markov"] = floors.DecayedMarkov(dataset, division)
    scorers["Personal Markov"] = floors.PersonalMarkov(dataset, division)
    length = run.batches.length
    if (evaluator.lengths > length).any():
        # What a model could count that reads no more than ours.
        scorers[f"Personal Markov, last {length} events"] = floors.PersonalMarkov(
            dataset, division, max_length=length
        )
    if run.experiment.data.request_time == "known":
        scorers["Timed Markov"] = floors.TimedMarkov(dataset, division)
        scorers["Timed Personal Markov"] = floors.PersonalMarkov(dataset, division, timed=True)
    if run.source.world is not None:
        scorers["Oracle"] = run.source.world.oracle_scores
    return {name: evaluator.run_scores(scorer) for name, scorer in scorers.items()}


def write_results(run: Run, state: TrainState, folder: Path) -> dict[str, Any]:
    """Evaluates the selected state on both splits and writes `results.json`.

    The per-target ranks of the model go to `ranks/SPLIT.npz`: every metric can be recomputed from
    them. Where `results.json` exists already, it is returned as it is: the test split is read once.
    Of several processes all evaluate, and the first one writes.

    Args:
      run: The experiment.
      state: The state that validation selected.
      folder: The workdir.

    Returns:
      What `results.json` holds.
    """
    path = folder / "results.json"
    if path.exists():
        return json.loads(path.read_text())
    results: dict[str, Any] = {
        "name": run.experiment.name,
        "title": f"{run.experiment.name} on {data_title(run)}",
        "step": int(state.step),
        "epoch": int(state.step) / run.batches.steps_per_epoch,
        "selected_by": selected_by(run.experiment.evaluation.filter_seen),
        "environment": workdir.environment(),
        "split": run.source.split.description,
    }
    for split in typing.get_args(SplitName):
        evaluated = run.evaluate(state.params, split)
        if distributed.is_first():
            evaluated.save(folder / "ranks" / f"{split}.npz")
        results[split] = {run.experiment.name: evaluated.summary()}
    results["test"] |= {name: result.summary() for name, result in references(run, "test").items()}
    if distributed.is_first():
        workdir.write_json(path, results)
    return results


def read_results(folder: Path) -> dict[str, Any]:
    """A run's `results.json`.

    Raises:
      WorkdirError: If the run has not written it yet.
    """
    path = folder / "results.json"
    if not folder.is_dir():
        raise workdir.WorkdirError(f"no folder {folder}")
    if not path.exists():
        raise workdir.WorkdirError(f"no results.json in {folder}: the run has not ended yet")
    return json.loads(path.read_text())


def write_figures(
    folders: Sequence[Path],
    output: Path,
    *,
    metric: str = "NDCG@10",
    published: Mapping[str, Sequence[Mapping[str, float]]] | None = None,
) -> list[Path]:
    """Draws runs of one data set and protocol together: learning curves, and metric by length.

    Runs of one name are told apart by their folders.

    Args:
      folders: The runs' workdirs, each once; all have ended.
      output: Folder of the figures.
      metric: What is drawn.
      published: Learning curves of others by name: records of "epoch" and
        "validation/FILTER/METRIC".

    Returns:
      The files.

    Raises:
      MetricError: If there is no such metric.
      WorkdirError: If a run has not ended.
    """
    check_metric(metric)
    results = {
        name: read_results(folder)
        for name, folder in zip(workdir.run_names(folders), folders, strict=True)
    }
    first = next(iter(results.values()))
    curves: dict[str, Any] = {
        name: list(workdir.read_metrics(folder))
        for name, folder in zip(results, folders, strict=True)
    }
    filters = first["test"][first["name"]]["protocol"]["filter_seen"]
    notes = [workdir.read_experiment(folder).note for folder in folders]
    title = title_of_results(first, notes)
    references = {key: value for key, value in first["test"].items() if key != first["name"]}
    drawn = {
        "learning_curves.png": figures.learning_curves(
            curves | dict(published or {}),
            [*(f"validation/{name}/{metric}" for name in filters), "train/loss"],
            title=title,
            horizontal="epoch",
        )
    }
    systems = {name: result["test"][result["name"]] for name, result in results.items()}
    systems |= references
    for name in filters:
        buckets = {key: summary["buckets"][name] for key, summary in systems.items()}
        suffix = "filtered" if name == "all" else "unfiltered"
        drawn[f"by_length_{suffix}.png"] = figures.metric_by_bucket(
            {"events before the target": buckets},
            metric,
            title=f"{title}; test, seen items {in_words(name)}",
            references=references,
        )
    # Saved once all are drawn: what cannot be drawn leaves no half of them behind.
    return [figures.save_figure(figure, output / name) for name, figure in drawn.items()]
