"""A trained model's results: its test split, read once, beside the baselines."""

import json
import typing
from pathlib import Path
from typing import Any

from linseqrec.evaluation.baselines import fit_baselines
from linseqrec.evaluation.result import EvaluationResult, selected_by
from linseqrec.files import write_json
from linseqrec.runs.comparable import shared_title
from linseqrec.training import distributed, workdir
from linseqrec.training.run import Run, SplitName
from linseqrec.training.step import TrainState


def evaluate_baselines(run: Run, split: SplitName) -> dict[str, EvaluationResult]:
    """What a model's metrics are judged by: the baselines, and the best score of a generated world.

    Args:
      run: The run whose data and protocol are used.
      split: Which targets are predicted.

    Returns:
      Name to result; "Oracle" is the best score.
    """
    evaluator, length = run.evaluator(split), run.batches.length
    scorers: dict[str, Any] = fit_baselines(
        run.source.dataset,
        run.source.split,
        max_length=length if (evaluator.lengths > length).any() else None,
        request_times=run.experiment.data.request_time == "known",
    )
    if run.source.world is not None:
        scorers["Oracle"] = run.source.world.oracle_scores
    return {name: evaluator.run_scores(scorer) for name, scorer in scorers.items()}


def write_results(run: Run, state: TrainState, folder: Path) -> dict[str, Any]:
    """Evaluates the selected state on both splits and writes `results.json`.

    The model's ranks, target by target, go to `ranks/SPLIT.npz`: every metric can be recomputed
    from them. If `results.json` exists, the function only returns its content, so that no run reads
    its test split twice. Of several processes, all evaluate and the first one writes.

    Args:
      run: The run.
      state: The state that validation selected.
      folder: The workdir.

    Returns:
      What `results.json` holds.
    """
    path = folder / "results.json"
    if path.exists():
        return json.loads(path.read_text())
    experiment, division = run.experiment, run.source.split
    results: dict[str, Any] = {
        "name": experiment.name,
        "title": f"{experiment.name} on {shared_title([experiment], division.name)}",
        "step": int(state.step),
        "epoch": int(state.step) / run.batches.steps_per_epoch,
        "selected_by": selected_by(experiment.evaluation.filter_seen),
        "environment": workdir.environment(),
        "split": division.description,
    }
    for split in typing.get_args(SplitName):
        evaluated = run.evaluate(state.variables, split)
        if distributed.is_first():
            evaluated.save(folder / "ranks" / f"{split}.npz")
        results[split] = {experiment.name: evaluated.summary()}
    baselines = evaluate_baselines(run, "test")
    results["test"] |= {name: result.summary() for name, result in baselines.items()}
    if distributed.is_first():
        write_json(path, results)
    return results
