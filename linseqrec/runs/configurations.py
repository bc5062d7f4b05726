"""Runs grouped by configuration: those of a group differ in their seeds only."""

import dataclasses
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np

from linseqrec.config import Experiment
from linseqrec.config_fields import flatten, short_name, to_text
from linseqrec.config_json import to_json
from linseqrec.errors import FileError, RunsError
from linseqrec.evaluation.metrics import make_buckets
from linseqrec.runs.finished import FinishedRun, distinct_folders
from linseqrec.training import saved_run

# The seed, and fields that change no result: speed, devices, logging, remarks. So does the place of
# the data, because comparable runs have the same.
_NO_DIFFERENCE = (
    "note",
    "data.folder",
    "model.chunk_size",
    "training.save_minutes",
    "training.log_every",
    "training.seed",
    "evaluation.batch_size",
    "mesh.data",
    "mesh.model",
    "mesh.sequence",
)


@dataclasses.dataclass(frozen=True, eq=False)
class Configuration:
    """Comparable runs of one configuration that differ in their seeds.

    Attributes:
      label: The experiment's name, and the fields that set it apart from others of that name.
      runs: By ascending seed.
    """

    label: str
    runs: tuple[FinishedRun, ...]

    @property
    def experiment(self) -> Experiment:
        """The configuration, with the first run's seed."""
        return self.runs[0].experiment

    def by_seed(self, filter_seen: str, metric: str) -> np.ndarray:
        """A test metric of each run: float64 [S], S seeds."""
        return np.array([run.per_target(filter_seen, metric).mean() for run in self.runs])

    def per_target(self, filter_seen: str, metric: str) -> np.ndarray:
        """A test metric of each target, averaged over seeds: float64 [M]."""
        return np.mean([run.per_target(filter_seen, metric) for run in self.runs], axis=0)

    def validation(self, filter_seen: str, metric: str) -> float:
        """A metric of the selected checkpoints in validation, averaged over seeds."""
        return float(np.mean([run.validation(filter_seen, metric) for run in self.runs]))

    def by_length(
        self, filter_seen: str, metric: str, edges: Sequence[int]
    ) -> list[dict[str, Any]]:
        """A test metric by history length, one `Bucket.record` a bucket.

        Seeds are averaged target by target, so that the standard error is that of the mean.

        Args:
          filter_seen: The filter of seen items.
          metric: The metric.
          edges: Lower bounds of the buckets.
        """
        values = {metric: self.per_target(filter_seen, metric)}
        first = self.runs[0]
        return [bucket.record(values, first.users) for bucket in make_buckets(first.lengths, edges)]

    def logs(self) -> list[list[dict[str, float]]]:
        """The records of `metrics.jsonl`, a list for each seed.

        Prints which files have changed since their runs ended: the records only inform.
        """
        for run in self.runs:
            try:
                saved_run.check_sealed(run.folder, "metrics.jsonl", run.results)
            except FileError as error:
                print(f"{error}; its learning curve may be wrong", file=sys.stderr)
        return [list(saved_run.read_metrics(run.folder)) for run in self.runs]


def group_by_configuration(
    runs: Sequence[FinishedRun], *, repeats: bool = False
) -> list[Configuration]:
    """Groups runs, in the order in which the configurations first occur.

    Args:
      runs: Comparable runs.
      repeats: Whether two runs may have the same configuration and seed. Each run of such a
        configuration then stands by itself, labelled by its folder too.

    Raises:
      RunsError: If there are repeats that are not allowed: one run would count twice.
    """
    labels = configuration_labels([as_computed(run) for run in runs])
    groups: dict[str, list[FinishedRun]] = {}
    for label, run in zip(labels, runs, strict=True):
        groups.setdefault(label, []).append(run)
    configurations = []
    for label, group in groups.items():
        by_seed: dict[int, FinishedRun] = {}
        for run in group:
            other = by_seed.setdefault(run.experiment.training.seed, run)
            if other is not run and not repeats:
                raise RunsError(
                    f"{other.folder} and {run.folder} are the same configuration and seed: "
                    "leave one out of --runs"
                )
        if len(by_seed) == len(group):
            ordered = tuple(by_seed[seed] for seed in sorted(by_seed))
            configurations.append(Configuration(label, ordered))
        else:
            folders = distinct_folders([run.folder for run in group])
            configurations += [
                Configuration(f"{label} ({folder})", (run,))
                for folder, run in zip(folders, group, strict=True)
            ]
    return configurations


def as_computed(run: FinishedRun) -> Experiment:
    """A run's experiment, with what the model computed in for the dtype "auto"."""
    dtype = run.results.get("environment", {}).get("compute_dtype")
    if dtype is None or run.experiment.model.dtype != "auto":
        return run.experiment
    return dataclasses.replace(
        run.experiment, model=dataclasses.replace(cast(Any, run.experiment.model), dtype=dtype)
    )


def _as_number(value: Any) -> Any:
    """An integer as a float: 8 and 8.0 epochs are no difference."""
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def differing_fields(experiments: Sequence[Experiment]) -> dict[str, list[Any]]:
    """The fields in which experiments differ, except the seed and what changes no result.

    Args:
      experiments: Of any models.

    Returns:
      Dotted name to each experiment's value, None where it has no such field. A field is left out
      if all experiments that have it agree: another model's fields are no difference.
    """
    flat = [flatten(experiment) for experiment in experiments]
    fields = dict.fromkeys(field for values in flat for field in values)
    return {
        field: [values.get(field) for values in flat]
        for field in fields
        if field not in _NO_DIFFERENCE
        and len({repr(_as_number(values[field])) for values in flat if field in values}) > 1
    }


def deciding_fields(experiment: Experiment) -> dict[str, Any]:
    """What decides an experiment's results, but for its seed: fields by dotted name, for JSON."""
    return {
        name: to_json(value)
        for name, value in flatten(experiment).items()
        if name not in _NO_DIFFERENCE and name != "name"
    }


def is_still(recorded: Mapping[str, Any], experiment: Experiment) -> bool:
    """Whether an experiment is the one whose `deciding_fields` were recorded.

    A field that is newer than the record must have its default, under which nothing has changed. A
    recorded field that no experiment has any more is ignored.
    """
    not_default = dict(_not_default(experiment))
    return all(
        recorded[name] == value if name in recorded else name not in not_default
        for name, value in deciding_fields(experiment).items()
    )


def _not_default(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The fields whose values are not their defaults, by dotted name."""
    for field in dataclasses.fields(config):
        name, value = f"{prefix}{field.name}", getattr(config, field.name)
        if value != field.default:
            yield name, value
        if dataclasses.is_dataclass(value):
            yield from _not_default(value, f"{name}.")


def configuration_labels(experiments: Sequence[Experiment]) -> list[str]:
    """A label for each experiment; those that differ in their seeds only have the same.

    The label is the experiment's name and the values that set it apart from others of that name. A
    value that is more frequent among them than any other is not written: in an ablation each arm is
    called by what it changes.
    """
    distinct: dict[str, Experiment] = {}
    keys = []
    for experiment in experiments:
        values = flatten(experiment)
        keys.append(
            repr({key: _as_number(values[key]) for key in values if key not in _NO_DIFFERENCE})
        )
        distinct.setdefault(keys[-1], experiment)
    by_name: dict[str, list[Experiment]] = {}
    for experiment in distinct.values():
        by_name.setdefault(experiment.name, []).append(experiment)
    differing = {name: differing_fields(namesakes) for name, namesakes in by_name.items()}
    labels = {}
    for key, experiment in distinct.items():
        own = flatten(experiment)
        parts = [
            f"{short_name(field, list(own))}={to_text(own[field])}"
            for field, values in differing[experiment.name].items()
            if field in own and not _is_usual(own[field], values)
        ]
        labels[key] = " ".join([experiment.name, *parts])
    return [labels[key] for key in keys]


def _is_usual(value: Any, values: Sequence[Any]) -> bool:
    """Whether a value is more frequent among the values than any other."""
    counts = Counter(repr(_as_number(each)) for each in values)
    return counts.pop(repr(_as_number(value))) > max(counts.values(), default=0)
