"""Runs below some folders: those that have finished with what they found, and the others."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from linseqrec.config import Experiment
from linseqrec.config_checks import ConfigError
from linseqrec.errors import ReportError
from linseqrec.evaluation.metrics import per_target
from linseqrec.sweeps.task import LOG
from linseqrec.training import workdir
from linseqrec.training.results import read_results

_NEEDED = ("card.json", "ranks/test.npz")


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """A run that has tested its model.

    Attributes:
      folder: Its workdir.
      experiment: Its configuration.
      results: Its `results.json`.
      card: Its `card.json`.
      protocol: How it was tested (`EvaluationResult.protocol`).
      users: int64 [M], user index of each test target.
      targets: int32 [M], the item to be found.
      lengths: int64 [M], events before each target.
      ranks: Filter to float64 [M].
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
          ReportError: If there are no ranks, or they do not give its results: one of the two files
            is another run's.
          WorkdirError: If it is no run's folder, or the run has not ended.
          ConfigError: If its configuration cannot be read.
        """
        results = read_results(folder)
        if not (folder / "ranks" / "test.npz").exists():
            raise ReportError(f"{folder}: has results, but no ranks/test.npz")
        with np.load(folder / "ranks" / "test.npz") as dump:
            arrays = {name: dump[name] for name in dump.files}
        protocol = json.loads(str(arrays["protocol"]))
        run = cls(
            folder=folder,
            experiment=workdir.read_experiment(folder),
            results=results,
            card=workdir.read_card(folder),
            protocol=protocol,
            users=arrays["user"],
            targets=arrays["target"],
            lengths=arrays["length"],
            ranks={name: arrays[f"rank_{name}"] for name in protocol["filter_seen"]},
        )
        for name, ranks in run.ranks.items():
            said = run.summary["metrics"][name]["NDCG@10"]
            if not np.isclose(per_target(ranks, [10])["NDCG@10"].mean(), said, rtol=1e-9):
                raise ReportError(
                    f"{folder}: ranks/test.npz does not give the NDCG@10 of results.json "
                    f"({said}, filter {name}): one of them is another run's"
                )
        return run

    @property
    def summary(self) -> dict[str, Any]:
        """The model's entry among the test results."""
        return self.results["test"][self.results["name"]]


@dataclasses.dataclass(frozen=True)
class UnfinishedRun:
    """A run without results, or with a configuration that cannot be read.

    Attributes:
      folder: Its workdir.
      stage: How far it came, or what is wrong, in words.
    """

    folder: Path
    stage: str


def find_runs(folders: Sequence[Path]) -> tuple[list[FinishedRun], list[UnfinishedRun]]:
    """The runs below the folders, each once, in the order of their paths.

    Raises:
      ReportError: If a folder does not exist, no run has finished, or a run's files disagree.
    """
    for folder in folders:
        if not folder.is_dir():
            raise ReportError(f"no folder {folder}")
    found: dict[Path, Path] = {}
    for folder in folders:
        for path in _below(folder):
            found.setdefault(path.resolve(), path)
    finished, unfinished = [], []
    for path in found.values():
        missing = [name for name in ("results.json", *_NEEDED) if not (path / name).exists()]
        if missing:
            unfinished.append(UnfinishedRun(path, _stage(path, missing)))
            continue
        try:
            finished.append(FinishedRun.open(path))
        except ConfigError as error:
            unfinished.append(UnfinishedRun(path, f"cannot be read: {error}"))
    if not finished:
        listed = ", ".join(map(str, folders))
        stages = "".join(f"\n  {run.folder}: {run.stage}" for run in unfinished)
        raise ReportError(f"no finished run in {listed}; {len(unfinished)} have begun{stages}")
    return finished, unfinished


def _below(folder: Path) -> Iterator[Path]:
    """Folders of runs; a run that failed as it began has left only its log."""
    if (folder / "config.json").exists():
        yield folder
        return
    below = [run for path in sorted(folder.iterdir()) if path.is_dir() for run in _below(path)]
    if not below and (folder / LOG).exists():
        yield folder
    yield from below


def _stage(folder: Path, missing: Sequence[str]) -> str:
    if not (folder / "config.json").exists():
        lines = (folder / LOG).read_text(errors="replace").split("\n")
        said = next((line for line in reversed(lines) if line), "nothing")
        return f"did not begin; its log ends in: {said}"
    if "results.json" not in missing:
        return f"has results, but no {' and no '.join(missing)}"
    steps = [record["step"] for record in workdir.read_metrics(folder)]
    return f"training, at step {steps[-1]:,.0f}" if steps else "training, nothing logged yet"
