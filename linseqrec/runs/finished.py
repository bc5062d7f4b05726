"""Finished runs: found below folders, opened, named, and their best counting baseline."""

import dataclasses
import os
import re
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from linseqrec.config import Experiment
from linseqrec.errors import FileError, RunsError, UserError
from linseqrec.evaluation.metrics import METRIC_NAMES, make_buckets, metric_per_target, rank_metrics
from linseqrec.evaluation.ranks import FilterSeen, Ties
from linseqrec.evaluation.result import SELECTION_METRIC, selected_by
from linseqrec.files import check_form, parse_json, read_arrays
from linseqrec.runs.comparable import Conditions, shared_title
from linseqrec.training import saved_run, workdir

# Holds what a sweep's run prints; a run that failed early leaves nothing else.
LOG = "log.txt"
# The ranks of the best counting baseline under each filter.
BEST_BASELINE = Path("ranks", "best_baseline.npz")
# The best score of a generated world: it knows how the world was made, and is no baseline.
ORACLE = "Oracle"
_FILES = ("results.json", "card.json", "ranks/test.npz")
# A folder with one of these holds a run, even if its configuration is gone.
_TRACES = ("config.json", "results.json", "environments.jsonl")
# The arrays of `EvaluationResult.save` by the kinds of their types, but for the ranks.
_ARRAYS = {"user": "iu", "target": "iu", "length": "iu"}


@dataclasses.dataclass(frozen=True, eq=False)
class FinishedRun:
    """A run that has tested its model.

    Attributes:
      folder: Its workdir.
      experiment: Its configuration.
      results: Its `results.json`.
      card: Its `card.json`.
      protocol: How it was tested (`EvaluationResult.protocol`).
      users: int64 [M], user index of each test target.
      targets: int32 [M], the item to predict.
      lengths: int64 [M], events before each target.
      ranks: Filter of seen items to float64 [M].
    """

    folder: Path
    experiment: Experiment
    results: dict[str, Any]
    card: dict[str, Any]
    protocol: dict[str, Any]
    users: np.ndarray
    targets: np.ndarray
    lengths: np.ndarray
    ranks: dict[str, np.ndarray]

    @classmethod
    def open(cls, folder: Path) -> "FinishedRun":
        """Reads a finished run.

        Raises:
          RunsError: If the run has not finished, or its ranks do not give its results: one of the
            two files belongs to another run.
          FileError: If a file is damaged, or has changed since the run ended.
          WorkdirError: If the folder is not the workdir of a run, or its configuration has changed
            since the run ended.
          ConfigError: If its configuration cannot be read.
        """
        if not folder.is_dir():
            raise RunsError(f"no folder {folder}")
        if missing := _missing(folder):
            raise RunsError(f"no {' and no '.join(missing)} in {folder}: the run has not ended yet")
        results = saved_run.read_results(folder)
        saved_run.check_sealed(folder, "ranks/test.npz", results)
        protocol, arrays = _read_ranks(folder / "ranks" / "test.npz")
        _check_summaries(folder / "results.json", results, protocol)
        run = cls(
            folder=folder,
            experiment=saved_run.read_experiment(folder),
            results=results,
            card=saved_run.read_card(folder),
            protocol=protocol,
            users=arrays["user"],
            targets=arrays["target"],
            lengths=arrays["length"],
            ranks={name: arrays[f"rank_{name}"] for name in protocol["filter_seen"]},
        )
        for name in run.ranks:
            reported = run.summary["metrics"][name]["NDCG@10"]
            if not np.isclose(run.per_target(name, "NDCG@10").mean(), reported, rtol=1e-9):
                raise RunsError(
                    f"{folder}: ranks/test.npz does not give the NDCG@10 of results.json "
                    f"({reported}, filter {name}): one of the files belongs to another run"
                )
        return run

    @property
    def summary(self) -> dict[str, Any]:
        """The model's test results (`EvaluationResult.summary`)."""
        return self.results["test"][self.results["name"]]

    @property
    def conditions(self) -> Conditions:
        """What its metrics depend on, besides the model."""
        return Conditions(
            self.protocol, self.results["split"], self.card, (self.users, self.targets)
        )

    @property
    def selected_by(self) -> str:
        """What selected the checkpoint, in words; results of earlier versions do not say it."""
        by_validation = selected_by(self.experiment.evaluation.filter_seen)
        return str(self.results.get("selected_by", by_validation))

    def per_target(self, filter_seen: str, metric: str) -> np.ndarray:
        """A rank metric of each test target under a filter, float64 [M]."""
        return metric_per_target(self.ranks[filter_seen], metric)

    def validation(self, filter_seen: str, metric: str) -> float:
        """A metric of the selected checkpoint in validation."""
        return self.results["validation"][self.results["name"]]["metrics"][filter_seen][metric]


def find_runs(folders: Sequence[Path]) -> tuple[list[FinishedRun], dict[Path, str]]:
    """Opens the runs below some folders, each once, in the order of their paths.

    Returns:
      The finished runs. The workdirs of the others, with how far each run has come, or what is
      wrong with it, in words.

    Raises:
      RunsError: If a folder does not exist, or no run has finished.
    """
    for folder in folders:
        if not folder.is_dir():
            raise RunsError(f"no folder {folder}")
    workdirs: dict[Path, Path] = {}
    visited: set[Path] = set()
    for folder in folders:
        for path in _workdirs_below(folder, visited):
            workdirs.setdefault(path.resolve(), path)
    finished, unfinished = [], {}
    for path in workdirs.values():
        try:
            if missing := _missing(path):
                unfinished[path] = _stage(path, missing)
            else:
                finished.append(FinishedRun.open(path))
        except UserError as error:
            unfinished[path] = f"cannot be read: {error}"
        except OSError as error:
            unfinished[path] = f"cannot be read: {error.filename}: {error.strerror}"
    if not finished:
        listed = ", ".join(map(str, folders))
        stages = "".join(f"\n  {path}: {stage}" for path, stage in unfinished.items())
        begun = f"{len(unfinished)} {'has' if len(unfinished) == 1 else 'have'} begun"
        raise RunsError(f"no finished run in {listed}; {begun}{stages}")
    return finished, unfinished


def run_names(workdirs: Sequence[Path]) -> list[str]:
    """Names that tell runs apart: the experiment's name, and the folder where names coincide.

    The folder's last part is enough where it differs from the other folders'; otherwise the whole
    path is given.

    Raises:
      WorkdirError: If a folder is not the workdir of a run.
    """
    names = [saved_run.read_experiment(folder).name for folder in workdirs]
    return [
        name if names.count(name) == 1 else f"{name} ({folder})"
        for name, folder in zip(names, distinct_folders(workdirs), strict=True)
    ]


def distinct_folders(folders: Sequence[Path]) -> list[str]:
    """Each folder's last part, or its whole path where another folder has the same last part."""
    last = [folder.name for folder in folders]
    return [folder.name if last.count(folder.name) == 1 else str(folder) for folder in folders]


def title_of(runs: Sequence[FinishedRun]) -> str:
    """The title of comparable finished runs."""
    return shared_title([run.experiment for run in runs], runs[0].results["split"]["split"])


def baselines_of(runs: Sequence[FinishedRun]) -> dict[str, dict[str, Any]]:
    """The summaries of comparable runs' baselines, and of a generated world's oracle, by name.

    Runs of models that read different lengths have a Personal Markov of each length.
    """
    return {
        name: summary
        for run in runs
        for name, summary in run.results["test"].items()
        if name != run.results["name"]
    }


def _missing(folder: Path) -> list[str]:
    return [name for name in _FILES if not (folder / name).exists()]


def _read_ranks(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The protocol and the arrays that `EvaluationResult.save` wrote.

    Raises:
      FileError: The file is damaged, or holds something else.
    """
    arrays = read_arrays(path)
    try:
        protocol = parse_json(str(arrays["protocol"]).encode())
        check_form(protocol, saved_run.PROTOCOL)
        count, kinds = protocol["targets"], dict(_ARRAYS)
        filters, ties = (typing.get_args(choices) for choices in (FilterSeen, Ties))
        if not protocol["filter_seen"] or not set(protocol["filter_seen"]) <= set(filters):
            raise ValueError(f"protocol.filter_seen is {protocol['filter_seen']}")
        words = protocol["split"] + protocol["candidates"]
        if protocol["ties"] not in ties or not re.fullmatch(r"[\w ,()-]*", words):
            raise ValueError(f"protocol: ties {protocol['ties']!r}, candidates {words!r}")
        for name, kind in (
            kinds | {f"rank_{name}": "f" for name in protocol["filter_seen"]}
        ).items():
            if arrays[name].shape != (count,) or arrays[name].dtype.kind not in kind:
                raise ValueError(f"{name} is {arrays[name].dtype} {list(arrays[name].shape)}")
            # The comparison is false for NaN.
            if kind == "f" and not (arrays[name] >= 0).all():
                raise ValueError(f"{name} holds numbers that are no ranks")
        make_buckets(arrays["length"], protocol["bucket_edges"])
    except KeyError as error:
        raise FileError(f"{path} is damaged: it has no array {error}") from error
    except ValueError as error:
        raise FileError(f"{path} is damaged: {error}") from error
    return protocol, arrays


def _check_summaries(path: Path, results: dict[str, Any], protocol: dict[str, Any]) -> None:
    """Refuses results without a metric or a length bucket that reports and figures read."""
    for split in ("validation", "test"):
        for name, summary in results[split].items():
            # Of its own split: the longest history may differ.
            count = len(summary["protocol"]["bucket_edges"])
            for filter_seen in protocol["filter_seen"]:
                metrics = summary["metrics"].get(filter_seen, {})
                missing = [metric for metric in METRIC_NAMES if metrics.get(metric) is None]
                buckets = summary["buckets"].get(filter_seen, [])
                where = f"{path} is damaged: {split}, {name}, seen items {filter_seen!r}"
                if missing:
                    raise FileError(f"{where} has no {missing[0]}")
                if len(buckets) != count:
                    raise FileError(f"{where} has {len(buckets)} length buckets, not {count}")


def _workdirs_below(folder: Path, visited: set[Path]) -> Iterator[Path]:
    """Workdirs at any depth, also of runs that failed as they began.

    Links may lead in circles: `visited` holds the folders that were looked into.
    """
    if any(os.path.lexists(folder / name) for name in _TRACES):
        yield folder
        return
    if folder.resolve() in visited:
        return
    visited.add(folder.resolve())
    try:
        children = [path for path in sorted(folder.iterdir()) if path.is_dir()]
    except OSError:
        yield folder  # `find_runs` reports why it cannot be read.
        return
    below = [run for path in children for run in _workdirs_below(path, visited)]
    if not below and (folder / LOG).exists():
        yield folder
    yield from below


def _stage(folder: Path, missing: Sequence[str]) -> str:
    if not any(os.path.lexists(folder / name) for name in _TRACES):
        os.listdir(folder)  # Raises if the folder cannot be read.
        lines = (folder / LOG).read_text(errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line), "nothing")
        return f"did not begin; its log ends in: {last}"
    if "results.json" not in missing:
        return f"has results, but no {' and no '.join(missing)}"
    saved_run.read_experiment(folder)
    steps = [record["step"] for record in saved_run.read_metrics(folder)]
    at = f"at step {steps[-1]:,.0f}" if steps else "nothing logged yet"
    if workdir.is_locked(folder):
        return f"training, {at}"
    return f"stopped, {at}: run its command again"


def best_baseline(runs: Sequence[FinishedRun], filter_seen: str) -> tuple[str, np.ndarray] | None:
    """The best baseline of comparable runs under a filter: its name, and its ranks [M].

    Returns:
      None if no run has the file; earlier versions did not write it.

    Raises:
      RunsError: A file is damaged, has changed since its run ended, or belongs to other targets.
    """
    found = [
        _best_baseline(run, filter_seen) for run in runs if (run.folder / BEST_BASELINE).exists()
    ]
    if not found:
        return None
    return max(found, key=lambda each: rank_metrics(each[1])[0][SELECTION_METRIC])


def _best_baseline(run: FinishedRun, filter_seen: str) -> tuple[str, np.ndarray]:
    path = run.folder / BEST_BASELINE
    try:
        # Earlier versions wrote no digest of it.
        if BEST_BASELINE.as_posix() in run.results.get("sha256", {}):
            saved_run.check_sealed(run.folder, BEST_BASELINE.as_posix(), run.results)
        arrays = read_arrays(path)
        name, ranks = str(arrays[f"name_{filter_seen}"]), arrays[f"rank_{filter_seen}"]
    except (FileError, KeyError) as error:
        raise RunsError(
            f"{path} is damaged ({error}): delete it, and the report does without this run's "
            "baseline"
        ) from error
    if ranks.shape != run.users.shape or ranks.dtype != np.float64 or np.isnan(ranks).any():
        raise RunsError(f"{path} belongs to other targets than ranks/test.npz: delete it")
    return name, ranks
