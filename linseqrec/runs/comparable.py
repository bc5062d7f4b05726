"""Which runs may stand in one table, figure or report, and the title that they share."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from linseqrec.config import Experiment
from linseqrec.data.card import differing_data
from linseqrec.errors import RunsError
from linseqrec.evaluation.metrics import BUCKET_EDGES
from linseqrec.evaluation.result import seen_targets
from linseqrec.training.run import Run


@dataclasses.dataclass(frozen=True, eq=False)
class Conditions:
    """All that the metrics of an evaluation depend on, besides the model.

    Attributes:
      protocol: `EvaluationResult.protocol`, or the fields of it that are known.
      split: `Split.description`; None where it is not known.
      card: The data set's `card.json`; None where it is not known.
      targets: The users and the items of the targets, in order; None where they are not known.
    """

    protocol: Mapping[str, Any]
    split: Mapping[str, Any] | None = None
    card: Mapping[str, Any] | None = None
    targets: tuple[np.ndarray, np.ndarray] | None = None

    @classmethod
    def of_run(cls, run: Run, protocol: Mapping[str, Any] | None = None) -> "Conditions":
        """The conditions of a run's evaluations.

        Args:
          run: The run.
          protocol: Of one evaluation. None: what the run's configuration says of all of them.
        """
        if protocol is None:
            evaluation = run.experiment.evaluation
            protocol = {
                "filter_seen": evaluation.filter_seen,
                "ties": evaluation.ties,
                "request_time": run.experiment.data.request_time,
            }
        return cls(protocol, run.source.split.description, run.source.dataset.card)


def _common_edges(edges: Sequence[int] | None) -> list[int] | None:
    """The bucket edges that every result has: old ones end at 500."""
    return None if edges is None else [edge for edge in edges if edge <= BUCKET_EDGES[-1]]


# Runs whose models read different numbers of events (`max_length`) are comparable.
_SHARED: dict[str, Callable[[Conditions], Any]] = {
    "split": lambda its: its.split,
    "targets": lambda its: [its.protocol.get("split"), its.protocol.get("targets")],
    "filters of seen items": lambda its: sorted(its.protocol["filter_seen"]),
    # Old results kept seen targets among the candidates; without any, there is no difference.
    "treatment of seen targets": lambda its: seen_targets(its.protocol),
    # Old results do not name the request time: it was always hidden.
    "request time": lambda its: its.protocol.get("request_time", "hidden"),
    "ties": lambda its: its.protocol["ties"],
    "candidates": lambda its: [its.protocol.get("candidates"), its.protocol.get("num_items")],
    "length buckets": lambda its: _common_edges(its.protocol.get("bucket_edges")),
}


def check_comparable(conditions: Mapping[str, Conditions]) -> None:
    """Refuses runs whose metrics must not be compared.

    Args:
      conditions: Each run's, by what an error calls the run.

    Raises:
      RunsError: If their data, split, protocol or targets differ; names the difference and the
        runs.
    """
    (first_name, first), *others = conditions.items()
    for name, other in others:
        if first.card and other.card and (arrays := differing_data(first.card, other.card)):
            raise RunsError(
                f"{first_name} and {name} cannot be compared: they are runs on different data "
                f"({', '.join(arrays)} differ, by sha256 in card.json)"
            )
    for field, read in _SHARED.items():
        names: dict[str, list[str]] = {}
        for name, each in conditions.items():
            names.setdefault(json.dumps(read(each), sort_keys=True), []).append(name)
        if len(names) > 1:
            listed = "".join(f"\n  {value}: {', '.join(own)}" for value, own in names.items())
            raise RunsError(f"the runs cannot be compared: they differ in their {field}{listed}")
    for name, other in others:
        if first.targets and other.targets:
            if not all(map(np.array_equal, first.targets, other.targets)):
                raise RunsError(
                    f"{first_name} and {name} cannot be compared: they have other targets, or the "
                    "same targets in another order"
                )


def comparable(first: Conditions, other: Conditions) -> bool:
    """Whether `check_comparable` lets two evaluations stand together."""
    try:
        check_comparable({"first": first, "other": other})
    except RunsError:
        return False
    return True


def shared_title(experiments: Sequence[Experiment], split: str) -> str:
    """The title of comparable runs: the data, the split, and what a reader must know.

    Args:
      experiments: The runs' configurations.
      split: The split's name, `Split.name`.
    """
    data = experiments[0].data
    name = Path(data.folder).name
    if not data.folder:
        name = f"generated world {data.world!r} (synthetic data)"
    parts = [name, f"split {split}"]
    if data.request_time == "known":
        parts.append("request time known")
    notes = dict.fromkeys(experiment.note for experiment in experiments)
    return "; ".join([*parts, *filter(None, notes)])
