"""The plan of a sweep: each run's folder, configuration, and what its folder holds already."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from linseqrec.config import Experiment
from linseqrec.config_checks import ConfigError
from linseqrec.config_fields import field_names, override, to_text
from linseqrec.data.source import DataConfig, load_source
from linseqrec.errors import SweepError
from linseqrec.sweeps.algebra import Axis
from linseqrec.sweeps.folders import folder_name
from linseqrec.training import workdir

State = Literal["new", "partial", "finished", "clash"]


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep.

    Attributes:
      folder: Its workdir.
      overrides: What it changes of the sweep's experiment, by dotted name.
      experiment: Its configuration.
      state: "new" (no checkpoint yet), "partial" (goes on where it stopped), "finished" (has
        results), or "clash" (the folder is another configuration's, or a run's on other data).
      clash: Why it is a clash.
    """

    folder: Path
    overrides: dict[str, Any]
    experiment: Experiment
    state: State
    clash: str = ""


def make_plan(experiment: Experiment, axis: Axis, folder: Path) -> list[PlannedRun]:
    """The runs of a sweep, each checked against the typed configuration and its folder.

    Args:
      experiment: What the runs have in common.
      axis: What each of them overrides.
      folder: The runs' folders stand in it.

    Raises:
      SweepError: If a run's configuration cannot be.
      DatasetError: If data that a folder's run is to be compared with cannot be read.
      SplitError: If they cannot be split so.
    """
    names, cards = field_names(experiment), _Cards()
    runs = []
    for overrides in axis:
        try:
            made = override(experiment, overrides)
        except ConfigError as error:
            raise SweepError(f"{_flags(overrides)}: {error}") from error
        place = folder / folder_name(overrides, names)
        clash = _clash(place, made, cards)
        state: State = "new"
        if clash:
            state = "clash"
        elif workdir.has_begun(place):
            state = "finished" if (place / "results.json").exists() else "partial"
        runs.append(PlannedRun(place, overrides, made, state, clash))
    return runs


def check_no_clash(runs: Sequence[PlannedRun]) -> None:
    """Refuses a plan of which some folder is taken.

    Raises:
      WorkdirError: With every clash.
    """
    clashes = [run.clash for run in runs if run.state == "clash"]
    if clashes:
        raise workdir.WorkdirError("\n".join([*clashes, "nothing was started"]))


def plan_table(runs: Sequence[PlannedRun]) -> str:
    """The plan as an aligned table, a run a line, with a count of the states below."""
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


class _Cards:
    """The cards of the data that runs are to be trained on, each made once."""

    def __init__(self) -> None:
        self._known: dict[DataConfig, dict[str, Any]] = {}

    def of(self, data: DataConfig) -> dict[str, Any]:
        if data not in self._known:
            self._known[data] = load_source(data).dataset.card
        return self._known[data]


def _clash(folder: Path, experiment: Experiment, cards: _Cards) -> str:
    """Why a run cannot be in a folder; empty if it can."""
    if not workdir.has_begun(folder):
        return ""
    try:
        workdir.check_experiment(folder, experiment)
        workdir.check_data(folder, cards.of(experiment.data))
    except (workdir.WorkdirError, ConfigError) as error:
        return str(error) if str(folder) in str(error) else f"{folder}: {error}"
    return ""
