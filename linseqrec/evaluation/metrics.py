"""Metrics from the ranks of targets. Each metric is a mean over targets, in float64."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from linseqrec.errors import UserError

CUTOFFS = (1, 5, 10, 20, 50, 100, 200, 500)
BUCKET_EDGES = (0, 50, 100, 200, 500)


def per_target(ranks: np.ndarray, cutoffs: Sequence[int] = CUTOFFS) -> dict[str, np.ndarray]:
    """HR, NDCG and MRR of each target, for means and paired comparisons.

    A target is the only relevant item of its list. If `rank <= k`, HR@k is 1, NDCG@k is
    `1 / log2(1 + rank)` and MRR@k is `1 / rank`; otherwise all three are 0. A tie gives a
    fractional rank, which is not rounded: a target at rank 10.5 is no hit at 10.

    Args:
      ranks: [M], from 1.
      cutoffs: The cut-offs k.

    Returns:
      Float64 [M] by name, such as `HR@10`.
    """
    ranks = np.asarray(ranks, np.float64)
    values: dict[str, np.ndarray] = {}
    for name, gain in (
        ("HR", np.ones_like(ranks)),
        ("NDCG", 1.0 / np.log2(1.0 + ranks)),
        ("MRR", 1.0 / ranks),
    ):
        for k in cutoffs:
            values[f"{name}@{k}"] = np.where(ranks <= k, gain, 0.0)
    return values


# The names of all rank metrics at the default cut-offs.
METRIC_NAMES = tuple(per_target(np.ones(1)))


class MetricError(UserError, ValueError):
    """A metric's name is unknown."""


def check_metric(metric: str) -> None:
    """Raises an error if a name is not in `METRIC_NAMES`.

    Raises:
      MetricError: The name is unknown; lists the known ones.
    """
    if metric not in METRIC_NAMES:
        raise MetricError(f"no metric {metric!r}; there are {', '.join(METRIC_NAMES)}")


def rank_metrics(
    ranks: np.ndarray, cutoffs: Sequence[int] = CUTOFFS
) -> tuple[dict[str, float], dict[str, float]]:
    """Means and standard errors of the metrics over the targets, by name.

    The standard error (sample deviation over sqrt(M)) assumes independent targets. It is NaN for a
    single target. If users have several targets each, it is too small: bootstrap over users
    (`significance.py`).

    Args:
      ranks: [M], from 1.
      cutoffs: The cut-offs k.

    Raises:
      ValueError: There are no targets.
    """
    if len(ranks) == 0:
        raise ValueError("there are no targets: a metric needs at least one")
    means, errors = {}, {}
    for name, values in per_target(ranks, cutoffs).items():
        means[name] = float(values.mean())
        spread = values.std(ddof=1) if len(values) > 1 else np.nan
        errors[name] = float(spread / np.sqrt(len(values)))
    return means, errors


def group_auc(ranks: np.ndarray, num_candidates: np.ndarray) -> float:
    """GAUC: the share of other candidates that rank below the target, averaged over targets.

    Args:
      ranks: [M], with mean ties, so that a tie counts one half, as in an AUC.
      num_candidates: [M] or a scalar, number of candidates of each row, including the target.
    """
    others = np.maximum(np.asarray(num_candidates, np.float64) - 1.0, 1.0)
    return float(np.mean(1.0 - (np.asarray(ranks, np.float64) - 1.0) / others))


class PooledAUC:
    """AUC over all pairs (target of row a, other candidate of row b), for any rows a and b.

    It is the share of pairs in which the target scores higher; a tie counts one half. Unlike GAUC
    it compares scores of different users, so it makes sense only if these are on one scale. The
    value is exact: each batch of other candidates is sorted once.
    """

    def __init__(self, target_scores: np.ndarray):
        self._targets = np.asarray(target_scores).ravel()
        # Counted in half pairs, because a tie counts one half.
        self._half_wins, self._half_pairs = 0, 0

    def add(self, others: np.ndarray) -> None:
        """Adds scores of other candidates, an array of any shape."""
        ordered = np.sort(others, axis=None)
        below = np.searchsorted(ordered, self._targets, "left").sum(dtype=np.int64)
        not_above = np.searchsorted(ordered, self._targets, "right").sum(dtype=np.int64)
        self._half_wins += int(below) + int(not_above)
        self._half_pairs += 2 * ordered.size * self._targets.size

    def value(self) -> float:
        """The AUC over all scores added so far; NaN before the first."""
        return self._half_wins / self._half_pairs if self._half_pairs else float("nan")


def list_metrics(
    top: np.ndarray, num_items: int, item_counts: np.ndarray | None = None
) -> dict[str, float]:
    """Coverage and popularity of the recommended items.

    Args:
      top: [M, K], recommended item ids; shorter lists are filled up with 0.
      num_items: N.
      item_counts: [N + 1], number of training events of each item; None leaves popularity out.

    Returns:
      `coverage@K`, the share of the catalogue that occurs in at least one list, and
      `popularity@K`, the mean number of training events of a recommended item.
    """
    k = top.shape[1]
    top = top[top > 0]
    values = {f"coverage@{k}": np.unique(top).size / num_items}
    if item_counts is not None:
        values[f"popularity@{k}"] = float(np.asarray(item_counts, np.float64)[top].mean())
    return values


def bucket_metrics(
    ranks: np.ndarray,
    values: np.ndarray,
    edges: Sequence[float] = BUCKET_EDGES,
    cutoffs: Sequence[int] = CUTOFFS,
    *,
    unit: Literal["events", "share"] = "events",
    without: str | None = None,
) -> list[dict[str, Any]]:
    """Metrics of the targets in each bucket of a value, such as the history length.

    Args:
      ranks: [M].
      values: [M], the value of each target: a number of events, or a share from 0 to 1. NaN if a
        target has no value. A history length counts all events, not only the model's window.
      edges: Lower bounds of the buckets, ascending from 0. The last bucket has no upper bound.
      cutoffs: The cut-offs k.
      unit: Unit of the values. Buckets of events get names such as "50-99", buckets of shares
        "10-25%".
      without: Name of an additional last bucket for the targets without a value. None: these
        targets are in no bucket.

    Returns:
      One record per bucket, in the order of the edges. `name`, `targets` (their number), `metrics`
      and `standard_errors`; the last two are empty if there are no targets. `low` is the bucket's
      edge. `high` is its last number of events, or the next edge for shares; None in the bucket of
      the last edge. Both are None in the bucket of targets without a value.

    Raises:
      ValueError: The edges do not ascend from 0.
    """
    if list(edges) != sorted(set(edges)) or not edges or edges[0] != 0:
        raise ValueError(f"bucket edges must ascend from 0, got {tuple(edges)}")

    def record(
        name: str, low: float | None, high: float | None, in_bucket: np.ndarray
    ) -> dict[str, Any]:
        means, errors = rank_metrics(ranks[in_bucket], cutoffs) if in_bucket.any() else ({}, {})
        return {
            "name": name,
            "low": low,
            "high": high,
            "targets": int(in_bucket.sum()),
            "metrics": means,
            "standard_errors": errors,
        }

    records = []
    for low, next_low in zip(edges, [*edges[1:], None], strict=True):
        in_bucket = values >= low
        if next_low is not None:
            in_bucket &= values < next_low
        high: float | None
        if unit == "events":
            high = None if next_low is None else int(next_low) - 1
            name = f"{low}+" if high is None else f"{low}-{high}"
        else:
            high = next_low
            name = f"{low:.0%}+" if next_low is None else f"{100 * low:.0f}-{next_low:.0%}"
        records.append(record(name, low, high, in_bucket))
    if without is not None:
        records.append(record(without, None, None, np.isnan(values)))
    return records
