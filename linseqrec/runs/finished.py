"""Finished runs: find them below folders, open them, name them."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from linseqrec.config import Experiment
from linseqrec.config_fields import ConfigError
from linseqrec.errors import RunsError
from linseqrec.evaluation.metrics import per_target
from linseqrec.runs.comparable import Conditions, shared_title
from linseqrec.training import workdir

# Holds what a sweep's run prints; a run that failed early leaves nothing else.
LOG = "log.txt"
_FILES = ("results.json", "card.json", "ranks/test.npz")


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
          WorkdirError: If the folder is not the workdir of a run.
          ConfigError: If its configuration cannot be read.
        """
        if not folder.is_dir():
            raise RunsError(f"no folder {folder}")
        if missing := _missing(folder):
            raise RunsError(f"no {' and no '.join(missing)} in {folder}: the run has not ended yet")
        with np.load(folder / "ranks" / "test.npz") as dump:
            arrays = {name: dump[name] for name in dump.files}
        protocol = json.loads(str(arrays["protocol"]))
        run = cls(
            folder=folder,
            experiment=workdir.read_experiment(folder),
            results=json.loads((folder / "results.json").read_text()),
            card=workdir.read_card(folder),
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

    def per_target(self, filter_seen: str, metric: str) -> np.ndarray:
        """A rank metric of each test target under a filter, float64 [M]."""
        cutoff = int(metric.rpartition("@")[2])
        return per_target(self.ranks[filter_seen], [cutoff])[metric]

    def validation(self, filter_seen: str, metric: str) -> float:
        """A metric of the selected checkpoint in validation."""
        return self.results["validation"][self.results["name"]]["metrics"][filter_seen][metric]


def find_runs(folders: Sequence[Path]) -> tuple[list[FinishedRun], dict[Path, str]]:
    """Opens the runs below some folders, each once, in the order of their paths.

    Returns:
      The finished runs. The workdirs of the others, with how far each run has come, or what is
      wrong with it, in words.

    Raises:
      RunsError: If a folder does not exist, no run has finished, or a run's files disagree.
    """
    for folder in folders:
        if not folder.is_dir():
            raise RunsError(f"no folder {folder}")
    workdirs: dict[Path, Path] = {}
    for folder in folders:
        for path in _workdirs_below(folder):
            workdirs.setdefault(path.resolve(), path)
    finished, unfinished = [], {}
    for path in workdirs.values():
        try:
            if missing := _missing(path):
                unfinished[path] = _stage(path, missing)
            else:
                finished.append(FinishedRun.open(path))
        except ConfigError as error:
            unfinished[path] = f"cannot be read: {error}"
    if not finished:
        listed = ", ".join(map(str, folders))
        stages = "".join(f"\n  {path}: {stage}" for path, stage in unfinished.items())
        raise RunsError(f"no finished run in {listed}; {len(unfinished)} have begun{stages}")
    return finished, unfinished


def run_names(workdirs: Sequence[Path]) -> list[str]:
    """Names that tell runs apart: the experiment's name, and the folder where names coincide.

    The folder's last part is enough where it differs from the other folders'; otherwise the whole
    path is given.

    Raises:
      WorkdirError: If a folder is not the workdir of a run.
    """
    names = [workdir.read_experiment(folder).name for folder in workdirs]
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


def _workdirs_below(folder: Path) -> Iterator[Path]:
    """Workdirs at any depth, also of runs that failed as they began."""
    if (folder / "config.json").exists():
        yield folder
        return
    children = [path for path in sorted(folder.iterdir()) if path.is_dir()]
    below = [run for path in children for run in _workdirs_below(path)]
    if not below and (folder / LOG).exists():
        yield folder
    yield from below


def _stage(folder: Path, missing: Sequence[str]) -> str:
    if not (folder / "config.json").exists():
        lines = (folder / LOG).read_text(errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line), "nothing")
        return f"did not begin; its log ends in: {last}"
    if "results.json" not in missing:
        return f"has results, but no {' and no '.join(missing)}"
    steps = [record["step"] for record in workdir.read_metrics(folder)]
    return f"training, at step {steps[-1]:,.0f}" if steps else "training, nothing logged yet"
