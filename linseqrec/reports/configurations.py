"""Runs grouped by configuration: one group's runs differ in what changes no result, and seeds."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from linseqrec.config import Experiment
from linseqrec.config_fields import flatten, short_name, to_text
from linseqrec.errors import ReportError
from linseqrec.evaluation.metrics import per_target
from linseqrec.reports.runs import FinishedRun

# Fields that set no runs apart: how fast a run is, on what, and how often it says so.
_NO_DIFFERENCE = (
    "model.chunk_size",
    "training.save_minutes",
    "training.log_every",
    "training.seed",
    "evaluation.batch_size",
    "mesh.data",
    "mesh.model",
    "mesh.sequence",
)


@dataclasses.dataclass(frozen=True)
class Configuration:
    """Runs of one configuration, but for the seed and what changes no result.

    Attributes:
      label: The experiment's name, and what sets it apart from others of that name.
      runs: By ascending seed.
    """

    label: str
    runs: tuple[FinishedRun, ...]

    @property
    def experiment(self) -> Experiment:
        """The configuration, with the first run's seed."""
        return self.runs[0].experiment

    def by_seed(self, which: str, metric: str) -> np.ndarray:
        """A metric's value under a filter in each run: float64 [S], S seeds."""
        return np.array([_values(run, which, metric).mean() for run in self.runs])

    def per_target(self, which: str, metric: str) -> np.ndarray:
        """A metric's value under a filter for each target, averaged over seeds: float64 [M]."""
        return np.mean([_values(run, which, metric) for run in self.runs], axis=0)


def _values(run: FinishedRun, which: str, metric: str) -> np.ndarray:
    return per_target(run.ranks[which], [int(metric.rpartition("@")[2])])[metric]


def group_by_configuration(runs: Sequence[FinishedRun]) -> list[Configuration]:
    """Groups runs, in the order in which the configurations first occur.

    Raises:
      ReportError: If two runs have the same configuration and seed: one would count twice.
    """
    groups: dict[str, dict[int, FinishedRun]] = {}
    for run in runs:
        values = flatten(run.experiment)
        telling = {field: value for field, value in values.items() if field not in _NO_DIFFERENCE}
        group = groups.setdefault(repr(telling), {})
        seed = run.experiment.training.seed
        if seed in group:
            raise ReportError(
                f"{group[seed].folder} and {run.folder} are the same configuration and seed: "
                "leave one out"
            )
        group[seed] = run
    seeds = [tuple(group[seed] for seed in sorted(group)) for group in groups.values()]
    labels = _labels([group[0].experiment for group in seeds])
    return [Configuration(label, group) for label, group in zip(labels, seeds, strict=True)]


def differing_fields(experiments: Sequence[Experiment]) -> dict[str, list[Any]]:
    """The fields in which experiments differ, but for the seed and what changes no result.

    Args:
      experiments: Of any models.

    Returns:
      Dotted name to each experiment's value, None where it has no such field. A field that all who
      have it agree on is left out: another model's fields are no difference of this one.
    """
    flat = [flatten(experiment) for experiment in experiments]
    fields = dict.fromkeys(field for values in flat for field in values)
    return {
        field: [values.get(field) for values in flat]
        for field in fields
        if field not in _NO_DIFFERENCE
        and len({repr(values[field]) for values in flat if field in values}) > 1
    }


def _labels(experiments: Sequence[Experiment]) -> list[str]:
    """Each one's name, and the values that set it apart from its namesakes.

    What more of them have than any other value goes without saying: where arms change one thing
    each, each is called by what it changed.
    """
    labels = []
    for experiment in experiments:
        namesakes = [other for other in experiments if other.name == experiment.name]
        own = flatten(experiment)
        parts = [
            f"{short_name(field, list(own))}={to_text(own[field])}"
            for field, values in differing_fields(namesakes).items()
            if field in own and not _is_usual(own[field], values)
        ]
        labels.append(" ".join([experiment.name, *parts]))
    return labels


def _is_usual(value: Any, values: Sequence[Any]) -> bool:
    """Whether more of the values are this one than any other."""
    counts = Counter(map(repr, values))
    return counts.pop(repr(value)) > max(counts.values(), default=0)
