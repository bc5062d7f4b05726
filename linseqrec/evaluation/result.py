"""`EvaluationResult`: the rank of each target, the metrics made of the ranks, and the protocol."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from linseqrec.evaluation.ranks import in_words
from linseqrec.files import replacing

SELECTION_METRIC = "NDCG@10"


def selected_by(filter_seen: Sequence[str]) -> str:
    """The criterion that selects a run's checkpoint, in words.

    Args:
      filter_seen: The run's filters of seen items; the first one is used.
    """
    return f"validation {SELECTION_METRIC}, seen items {in_words(filter_seen[0])}"


@dataclasses.dataclass(frozen=True)
class EvaluationResult:
    """The result of an evaluation, under each filter of seen items.

    Attributes:
      protocol: For JSON: split, filters, ties, window, numbers of targets and items.
      users: int64 [M], user index of each target.
      targets: int32 [M], the item to predict.
      lengths: int64 [M], events before the target (all of them, not only the model's window).
      target_seen: bool [M], whether the user had the target's item before. The filter "all" keeps
        such a target and removes the user's other items.
      ranks: Filter to float64 [M], the targets' ranks.
      metrics_by_filter: Filter to metric name to value.
      standard_errors: Filter to metric name to the standard error over targets.
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
