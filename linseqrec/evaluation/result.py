"""`EvaluationResult`: the rank of each target, the metrics made of the ranks, and the protocol."""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from linseqrec.evaluation.ranks import in_words
from linseqrec.files import replacing

SELECTION_METRIC = "NDCG@10"
# What the filter "all" does with a seen target, in `EvaluationResult.protocol`. Results without
# the entry kept such a target among the candidates.
SEEN_TARGETS = "missed"
# The share of seen targets from which the metrics without a filter stand first.
_MANY_SEEN = 0.03


def selected_by(filter_seen: Sequence[str]) -> str:
    """The criterion that selects a run's checkpoint, in words.

    Args:
      filter_seen: The run's filters of seen items; the first one is used.
    """
    return f"validation {SELECTION_METRIC}, seen items {in_words(filter_seen[0])}"


def filters_by_fit(protocol: Mapping[str, Any]) -> tuple[str, ...]:
    """The filters of an evaluation, first the one that fits its log: the order of tables.

    Filtering seen items fits a log where people rarely repeat an item. Where more than 3 % of the
    targets are seen, the filter makes so many targets unreachable that the unfiltered metrics fit.

    Args:
      protocol: `EvaluationResult.protocol`. If it does not say how many targets are seen, the
        filters keep their order.
    """
    filters = tuple(protocol["filter_seen"])
    if (seen := protocol.get("targets_among_seen")) is None:
        return filters
    first = "none" if seen > _MANY_SEEN * protocol["targets"] else "all"
    return tuple(sorted(filters, key=lambda name: name != first))


def seen_targets(protocol: Mapping[str, Any]) -> str:
    """What the filter "all" does with the seen targets: "missed", "kept", or "" if there are none.

    Args:
      protocol: `EvaluationResult.protocol`, or the fields of it that are known.
    """
    if "all" not in protocol["filter_seen"] or not protocol.get("targets_among_seen"):
        return ""
    return protocol.get("seen_targets", "kept")


def filter_in_words(filter_seen: str, protocol: Mapping[str, Any]) -> str:
    """A filter of seen items in words, with what it does to the seen targets of an evaluation.

    Args:
      filter_seen: One of the evaluation's filters.
      protocol: `EvaluationResult.protocol`.
    """
    treatment = seen_targets(protocol)
    if filter_seen != "all" or not treatment:
        return in_words(filter_seen)
    seen, targets = protocol["targets_among_seen"], protocol["targets"]
    effect = {
        "missed": "count as misses",
        "kept": "stay candidates, which tells the model that they may be the target",
    }[treatment]
    return (
        f"{in_words(filter_seen)} ({seen:,} targets, {seen / targets:.1%}, are seen and {effect})"
    )


@dataclasses.dataclass(frozen=True)
class EvaluationResult:
    """The result of an evaluation, under each filter of seen items.

    Attributes:
      protocol: For JSON: split, filters, ties, window, numbers of targets and items.
      users: int64 [M], user index of each target.
      targets: int32 [M], the item to predict.
      lengths: int64 [M], events before the target (all of them, not only the model's window).
      target_seen: bool [M], whether the user had the target's item before.
      ranks: Filter to float64 [M], the targets' ranks. Under the filter "all" a seen target has an
        infinite rank, because no filtered list can hold it.
      metrics_by_filter: Filter to metric name to value.
      standard_errors: Filter to metric name to the standard error over users.
      buckets: Filter to one record a length bucket (`metrics.bucket_metrics`).
    """

    protocol: dict[str, Any]
    users: np.ndarray
    targets: np.ndarray
    lengths: np.ndarray
    target_seen: np.ndarray
    ranks: dict[str, np.ndarray]
    metrics_by_filter: dict[str, dict[str, float]]
    standard_errors: dict[str, dict[str, float]]
    buckets: dict[str, list[dict[str, Any]]]

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics under the first filter, which selects the checkpoint."""
        return self.metrics_by_filter[self.protocol["filter_seen"][0]]

    def summary(self) -> dict[str, Any]:
        """Everything except the arrays, ready for `results.json`."""
        return {
            "protocol": self.protocol,
            "metrics": self.metrics_by_filter,
            "standard_errors": self.standard_errors,
            "buckets": self.buckets,
        }

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the arrays, from which every rank metric can be recomputed.

        Args:
          path: An `.npz` file, replaced in one step; its folder is made.

        Returns:
          The path. The file holds `user`, `target`, `length`, `target_seen`, and `rank_none` or
          `rank_all` or both, with one entry a target. `protocol` is JSON.

        Raises:
          ValueError: If the path does not end in `.npz`.
        """
        path = Path(path)
        if path.suffix != ".npz":
            raise ValueError(f"the ranks are written to an .npz file, got {path}")
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {f"rank_{name}": values for name, values in self.ranks.items()}
        with replacing(path) as partial:
            np.savez_compressed(
                partial,
                user=self.users,
                target=self.targets,
                length=self.lengths,
                target_seen=self.target_seen,
                protocol=np.array(json.dumps(self.protocol)),
                **arrays,
            )
        return path
