"""The plan of a sweep: the folder, the configuration and the state of each run."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Literal

from linseqrec.config import Experiment
from linseqrec.config_fields import ConfigError, field_names, to_text
from linseqrec.config_json import override
from linseqrec.data.source import DataConfig, load_source
from linseqrec.errors import FileError, SweepError, WorkdirError
from linseqrec.sweeps.algebra import Axis
from linseqrec.sweeps.folders import folder_name
from linseqrec.training import saved_run, workdir

State = Literal["new", "partial", "queued", "running", "finished", "clash"]


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep.

    Attributes:
      folder: The run's workdir.
      overrides: The run's values for fields of the sweep's experiment, by dotted name.
      experiment: The run's configuration.
      state: "new" means that the folder has no checkpoint, "partial" that it has a checkpoint and
        the run will continue, "queued" that a job for it waits, "running" that a process trains in
        it now, and "finished" that it has results. "clash" means that it has a run of another
        configuration or on other data.
      clash: The reason for a clash; otherwise empty.
    """

    folder: Path
    overrides: dict[str, Any]
    experiment: Experiment
    state: State
    clash: str = ""


def make_plan(
    experiment: Experiment, axis: Axis, folder: Path, *, queued: Collection[str] = ()
) -> list[PlannedRun]:
    """The runs of a sweep, with checked configurations and the states of their folders.

    Args:
      experiment: The experiment whose fields the runs override.
      axis: The overrides of each run.
      folder: The folder of the sweep, in which each run has its own folder.
      queued: The names of the folders for which a job waits already.

    Raises:
      SweepError: A run's configuration is not valid.
      DatasetError: The data set of a run whose folder has a checkpoint cannot be read.
      SplitError: That data set cannot be split as configured.
    """
    names, runs = field_names(experiment), []

    @functools.cache
    def card(data: DataConfig) -> dict[str, Any]:
        return load_source(data).dataset.card

    for overrides in axis:
        try:
            run_experiment = override(experiment, overrides)
        except ConfigError as error:
            raise SweepError(f"{_flags(overrides)}: {error}") from error
        run_folder = folder / folder_name(overrides, names)
        clash = _clash(run_folder, run_experiment, card)
        state: State = "new"
        if clash:
            state = "clash"
        elif workdir.has_begun(run_folder):
            state = "finished" if (run_folder / "results.json").exists() else "partial"
        if state in ("new", "partial"):
            if workdir.is_locked(run_folder):
                state = "running"
            elif run_folder.name in queued:
                state = "queued"
        runs.append(PlannedRun(run_folder, overrides, run_experiment, state, clash))
    return runs


def check_no_clash(runs: Sequence[PlannedRun]) -> None:
    """Raises an error if the folder of a run has another run.

    Raises:
      WorkdirError: There is a clash; lists all clashes.
    """
    clashes = [run.clash for run in runs if run.state == "clash"]
    if clashes:
        raise WorkdirError("\n".join([*clashes, "the sweep has started no run"]))


def plan_table(runs: Sequence[PlannedRun]) -> str:
    """The plan as an aligned table with one line per run, and the number of runs in each state."""
    rows = [("folder", "overrides", "state")]
    for run in runs:
        rows.append((run.folder.name, _flags(run.overrides), run.state))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    states = [run.state for run in runs]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    return "\n".join([*lines, f"{len(runs)} runs: {counts}"])


def _flags(overrides: dict[str, Any]) -> str:
    return " ".join(f"{field}={to_text(value)}" for field, value in overrides.items())


def _clash(
    folder: Path, experiment: Experiment, card: Callable[[DataConfig], dict[str, Any]]
) -> str:
    """The reason why a run cannot use a folder; empty if it can."""
    if not workdir.has_begun(folder):
        return ""
    try:
        saved_run.check_experiment(folder, experiment)
        saved_run.check_data(folder, card(experiment.data))
    except (WorkdirError, ConfigError, FileError) as error:
        return str(error) if str(folder) in str(error) else f"{folder}: {error}"
    return ""
