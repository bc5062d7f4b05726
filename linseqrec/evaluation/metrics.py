"""Metrics from ranks, in float64: each metric is a mean over targets."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from linseqrec.errors import UserError

CUTOFFS = (1, 5, 10, 20, 50, 100, 200, 500)
BUCKET_EDGES = (0, 50, 100, 200, 500)


def per_target(ranks: np.ndarray, cutoffs: Sequence[int] = CUTOFFS) -> dict[str, np.ndarray]:
    """HR, NDCG and MRR of each target.

    With one relevant item, HR@k is 1 where `rank <= k`, NDCG@k is `1 / log2(1 + rank)` there and
    MRR@k is `1 / rank`; elsewhere all are 0. A fractional rank (a tie) is not rounded, so that a
    target at 10.5 is no hit at 10.

    Args:
      ranks: [M], from 1.
      cutoffs: The ks.

    Returns:
      Metric name (`HR@10`) to float64 [M].
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


# The metrics at the usual cut-offs, which are evaluated, reported and drawn.
METRIC_NAMES = tuple(per_target(np.ones(1)))


class MetricError(UserError, ValueError):
    """A metric that does not exist."""


def check_metric(metric: str) -> None:
    """Refuses a metric that runs do not have.

    Raises:
      MetricError: With the metrics that exist.
    """
    if metric not in METRIC_NAMES:
        raise MetricError(f"no metric {metric!r}; there are {', '.join(METRIC_NAMES)}")


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """The mean of independent values, and its standard error: sample deviation / sqrt(M).

    Args:
      values: [M]. A single value has no standard error (NaN).
    """
    spread = values.std(ddof=1) if len(values) > 1 else np.nan
    return float(values.mean()), float(spread / np.sqrt(len(values)))


def summarise_users(values: np.ndarray) -> dict[str, float | int]:
    """The mean of a value over users, ready for JSON; users whose value is NaN do not count.

    Args:
      values: [U], a value of each user.

    Returns:
      `mean`, `standard_error` (NaN for a single user; both are NaN for none) and `users`.
    """
    values = values[np.isfinite(values)]
    mean, error = mean_and_error(values) if len(values) else (np.nan, np.nan)
    return {"mean": mean, "standard_error": error, "users": len(values)}


def rank_metrics(
    ranks: np.ndarray, cutoffs: Sequence[int] = CUTOFFS
) -> tuple[dict[str, float], dict[str, float]]:
    """Means and standard errors over the targets, by name.

    The standard error takes targets as independent. Where users have several targets it is too
    small: bootstrap over users (`significance.py`).

    Raises:
      ValueError: No targets.
    """
    if len(ranks) == 0:
        raise ValueError("no targets: a metric over nothing has no value")
    return _means_and_errors(per_target(ranks, cutoffs))


def _means_and_errors(
    values: Mapping[str, np.ndarray],
) -> tuple[dict[str, float], dict[str, float]]:
    both = {name: mean_and_error(own) for name, own in values.items()}
    return {name: mean for name, (mean, _) in both.items()}, {
        name: error for name, (_, error) in both.items()
    }


def group_auc(ranks: np.ndarray, num_candidates: np.ndarray) -> float:
    """GAUC: the mean over targets of the share of other candidates ranked below the target.

    Args:
      ranks: [M], with mean ties, so that a tie counts one half.
      num_candidates: [M] or a scalar, the candidates of each target, itself included.
    """
    others = np.maximum(np.asarray(num_candidates, np.float64) - 1.0, 1.0)
    return float(np.mean(1.0 - (np.asarray(ranks, np.float64) - 1.0) / others))


class PooledAUC:
    """AUC over all pairs of a target and another candidate, also of different users.

    The AUC is the share of pairs in which the target has the higher score; a tie counts one half.
    Unlike GAUC, it needs scores that are comparable between users. It is exact: each batch of other
    candidates is sorted once.
    """

    def __init__(self, target_scores: np.ndarray):
        self._targets = np.asarray(target_scores).ravel()
        self._won, self._pairs = 0, 0

    def add(self, others: np.ndarray) -> None:
        """Adds scores of other candidates, of any shape."""
        ordered = np.sort(others, axis=None)
        below = np.searchsorted(ordered, self._targets, "left").sum(dtype=np.int64)
        not_above = np.searchsorted(ordered, self._targets, "right").sum(dtype=np.int64)
        self._won += int(below) + int(not_above)
        self._pairs += 2 * ordered.size * self._targets.size

    def value(self) -> float:
        """The AUC of all scores added; NaN if there are none."""
        return self._won / self._pairs if self._pairs else float("nan")


def list_metrics(
    top: np.ndarray, num_items: int, item_counts: np.ndarray | None = None
) -> dict[str, float]:
    """Coverage and popularity of recommended lists.

    Args:
      top: [M, K], recommended item ids; 0 where a list is shorter.
      num_items: N.
      item_counts: [N + 1], training events of each item; None leaves popularity out.

    Returns:
      `coverage@K`, the share of the catalogue that is recommended to anyone, and `popularity@K`,
      the mean number of training events of a recommended item.
    """
    k = top.shape[1]
    top = top[top > 0]
    values = {f"coverage@{k}": np.unique(top).size / num_items}
    if item_counts is not None:
        values[f"popularity@{k}"] = float(np.asarray(item_counts, np.float64)[top].mean())
    return values


@dataclasses.dataclass(frozen=True)
class Bucket:
    """The targets whose histories are alike in one value, such as their length.

    Attributes:
      name: For tables and figures, such as "50-99".
      low: The least value.
      high: The greatest number of events, or the share from which the next bucket begins. None for
        the last bucket. Both bounds are None in a bucket of targets without a value.
      inside: bool [M], which targets are in the bucket.
    """

    name: str
    low: float | None
    high: float | None
    inside: np.ndarray

    def record(self, values: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """The bucket's metrics, ready for JSON.

        Args:
          values: Metric name to its value for each target, [M].

        Returns:
          `name`, `low`, `high`, `targets`, `metrics` and `standard_errors`; the last two are empty
          where the bucket has no targets.
        """
        targets = int(self.inside.sum())
        own = {name: of_all[self.inside] for name, of_all in values.items()} if targets else {}
        means, errors = _means_and_errors(own)
        return {
            "name": self.name,
            "low": self.low,
            "high": self.high,
            "targets": targets,
            "metrics": means,
            "standard_errors": errors,
        }


def make_buckets(
    values: np.ndarray,
    edges: Sequence[float] = BUCKET_EDGES,
    *,
    unit: Literal["events", "share"] = "events",
    without: str | None = None,
) -> list[Bucket]:
    """Divides targets into buckets by a value of each, such as the length of its history.

    Args:
      values: [M], a number of events, such as those before the target (all of them, not only the
        model's window), or a share of them. NaN where a target has no value.
      edges: Lower bounds of the buckets, ascending, the first 0; the last bucket has no upper one.
      unit: What the values are. It names the buckets: "50-99" events, or a share of "10-25 %".
      without: The name of one more bucket, the last, for the targets without a value. None: no
        bucket holds them.

    Returns:
      The buckets, lowest first.

    Raises:
      ValueError: Edges that do not ascend from 0.
    """
    if list(edges) != sorted(set(edges)) or not edges or edges[0] != 0:
        raise ValueError(f"bucket edges must ascend from 0, got {tuple(edges)}")
    buckets = []
    for low, above in zip(edges, [*edges[1:], None], strict=True):
        inside = values >= low
        if above is not None:
            inside &= values < above
        high: float | None
        if unit == "events":
            high = None if above is None else int(above) - 1
            name = f"{low}+" if high is None else f"{low}-{high}"
        else:
            high = above
            name = f"{low:.0%}+" if above is None else f"{100 * low:.0f}-{above:.0%}"
        buckets.append(Bucket(name, low, high, inside))
    if without is not None:
        buckets.append(Bucket(without, None, None, np.isnan(values)))
    return buckets


def bucket_metrics(
    ranks: np.ndarray,
    values: np.ndarray,
    edges: Sequence[float] = BUCKET_EDGES,
    cutoffs: Sequence[int] = CUTOFFS,
) -> list[dict[str, Any]]:
    """The rank metrics in buckets of events, one `Bucket.record` each, lowest first.

    Args:
      ranks: [M].
      values: [M], as in `make_buckets`.
      edges: As in `make_buckets`.
      cutoffs: The ks.
    """
    gains = per_target(ranks, cutoffs)
    return [bucket.record(gains) for bucket in make_buckets(values, edges)]
