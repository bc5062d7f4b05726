"""A trained model's results: its test split, read once, beside the baselines."""

import contextlib
import functools
import json
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from linseqrec.config import Experiment
from linseqrec.config_json import to_json
from linseqrec.data.worlds import oracle_scores
from linseqrec.errors import FileError
from linseqrec.evaluation.baselines import fit_baselines
from linseqrec.evaluation.result import SELECTION_METRIC, EvaluationResult, selected_by
from linseqrec.files import (
    read_json,
    read_json_lines,
    replacing,
    sha256_of_file,
    without_nan,
    write_json,
)
from linseqrec.runs.comparable import shared_title
from linseqrec.runs.finished import BEST_BASELINE, ORACLE
from linseqrec.training import distributed, saved_run, workdir
from linseqrec.training.checkpoint import newest_progress
from linseqrec.training.run import Run, SplitName
from linseqrec.training.step import TrainState

# Files whose digests stand in results.json, besides its own.
_SEALED = (
    "card.json",
    "metrics.jsonl",
    "ranks/validation.npz",
    "ranks/test.npz",
    "ranks/best_baseline.npz",
)


def evaluate_baselines(run: Run, split: SplitName) -> dict[str, EvaluationResult]:
    """What a model's metrics are judged by: the baselines, and the best score of a generated world.

    Args:
      run: The run whose data and protocol are used.
      split: Which targets are predicted.

    Returns:
      Name to result; "Oracle" is the best score.
    """
    evaluator, length = run.evaluator(split), run.batches.length
    request_time = run.experiment.data.request_time
    scorers: dict[str, Any] = fit_baselines(
        run.source.dataset,
        run.source.split,
        max_length=length if (evaluator.lengths > length).any() else None,
        request_times=request_time == "known",
    )
    if (world := run.source.world) is not None:
        ends = np.asarray(world.dataset.offsets)[evaluator.users + 1]
        # The oracle knows the states of the last `oracle_events` events of a user only.
        if (ends - evaluator.positions <= world.config.oracle_events).all():
            scorers[ORACLE] = functools.partial(oracle_scores, world, request_time=request_time)
    return {name: evaluator.run_scores(scorer) for name, scorer in scorers.items()}


def write_results(run: Run, state: TrainState, folder: Path) -> dict[str, Any]:
    """Evaluates the selected state on both splits and writes `results.json`.

    The model's ranks, target by target, go to `ranks/SPLIT.npz`: every metric can be recomputed
    from them. The results carry digests of the run's files and of themselves
    (`seal_results`). If `results.json` exists, the function only returns its content, so
    that no run reads its test split twice. The workdir is locked. Of several processes, all
    evaluate and the first one writes.

    Args:
      run: The run.
      state: The state that validation selected.
      folder: The workdir.

    Returns:
      What `results.json` holds.

    Raises:
      FileError: `results.json` exists and is damaged.
      WorkdirError: Another process uses the workdir.
    """
    with contextlib.ExitStack() as stack:
        distributed.on_first(lambda: stack.enter_context(workdir.lock(folder)))
        return _write_results(run, state, folder)


def _write_results(run: Run, state: TrainState, folder: Path) -> dict[str, Any]:
    path = folder / "results.json"
    if path.exists():
        written = saved_run.read_results(folder)
        if missing := [name for name in ("step", "epoch", "title") if name not in written]:
            raise FileError(f"{path} is damaged: it has no {missing[0]}")
        return written
    experiment, division = run.experiment, run.source.split
    results: dict[str, Any] = {
        "name": experiment.name,
        "title": f"{experiment.name} on {shared_title([experiment], division.name)}",
        "step": int(state.step),
        "epoch": int(state.step) / run.batches.steps_per_epoch,
        "selected_by": _selection(run, state, folder),
        "environment": recorded_environment(folder) or workdir.environment(experiment),
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
        write_best_baseline(folder, baselines)
        results = seal_results(folder, experiment, results)
        write_json(path, results)
    return results


def recorded_environment(folder: Path) -> dict[str, Any]:
    """The environment that a run was trained in, as its starts have recorded it.

    Returns:
      As `workdir.environment`. Where starts differ, the values of all, in their order: "1 x H200,
      1 x cpu".
    """
    merged: dict[str, Any] = {}
    for start in read_json_lines(folder / "environments.jsonl", dict):
        _merge(merged, start)
    return merged


def _merge(merged: dict[str, Any], start: Mapping[str, Any]) -> None:
    for name, value in start.items():
        if isinstance(value, dict):
            _merge(merged.setdefault(name, {}), value)
        elif merged.get(name) is None:
            merged[name] = value
        elif value is not None and str(value) not in str(merged[name]).split(", "):
            merged[name] = f"{merged[name]}, {value}"


def seal_results(folder: Path, experiment: Experiment, results: dict[str, Any]) -> dict[str, Any]:
    """The results with the configuration, and the digests of the run's files and of themselves."""
    present = [name for name in _SEALED if (folder / name).exists()]
    # Through JSON, so that the digest is that of what a reader gets.
    sealed = json.loads(json.dumps(without_nan(results | {"config": to_json(experiment)})))
    digests = {name: sha256_of_file(folder / name) for name in present}
    sealed["sha256"] = digests | {"results.json": ""}
    sealed["sha256"]["results.json"] = saved_run.digest_of_results(sealed)
    return sealed


def write_best_baseline(folder: Path, baselines: Mapping[str, EvaluationResult]) -> None:
    """Writes the ranks of the best baseline under each filter to `ranks/best_baseline.npz`.

    The best one is that with the highest test NDCG@10. It is chosen on the targets that it is
    compared on, which favours the baseline.

    Args:
      folder: The workdir.
      baselines: Name to test result. An oracle is passed over.
    """
    counting = {name: result for name, result in baselines.items() if name != ORACLE}
    arrays: dict[str, Any] = {}
    for filter_seen in next(iter(counting.values())).ranks:
        name, result = max(
            counting.items(),
            key=lambda each: each[1].metrics_by_filter[filter_seen][SELECTION_METRIC],
        )
        arrays[f"name_{filter_seen}"] = np.array(name)
        arrays[f"rank_{filter_seen}"] = result.ranks[filter_seen]
    path = folder / BEST_BASELINE
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        np.savez_compressed(partial, **arrays)


def _selection(run: Run, state: TrainState, folder: Path) -> str:
    """What selected a state, in words: validation, unless its best checkpoint was damaged."""
    criterion, step = selected_by(run.experiment.evaluation.filter_seen), int(state.step)
    path = newest_progress(folder / "checkpoints")
    if path is None:  # a state that was not trained in this folder
        return criterion
    try:
        best = read_json(path, {"best_step": int})["best_step"]
    except FileError:
        return criterion
    if step == best:
        return criterion
    return f"recency: the checkpoint of step {best}, the best by {criterion}, was damaged"
