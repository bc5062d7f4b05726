"""Metrics from the ranks of targets. Each metric is a mean over targets, in float64."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from linseqrec.errors import UserError

CUTOFFS = (1, 5, 10, 20, 50, 100, 200, 500)
# Lower bounds of the buckets of history lengths. Every log has the first ones (`length_edges`).
BUCKET_EDGES = (0, 50, 100, 200, 500)
_LONG_EDGES = (1_000, 2_000, 5_000, 10_000)


def per_target(ranks: np.ndarray, cutoffs: Sequence[int] = CUTOFFS) -> dict[str, np.ndarray]:
    """HR, NDCG and MRR of each target, for means and paired comparisons.

    A target is the only relevant item of its list. If `rank <= k`, HR@k is 1, NDCG@k is
    `1 / log2(1 + rank)` and MRR@k is `1 / rank`; otherwise all three are 0. A tie gives a
    fractional rank, which is not rounded: a target at rank 10.5 is no hit at 10.

    Args:
      ranks: [M], from 1; infinite for a miss at every cut-off.
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


def mean_and_error(values: np.ndarray, users: np.ndarray | None = None) -> tuple[float, float]:
    """The mean of values over targets, and its standard error.

    Users are independent, and drawn with all their targets. Where each has one, the error is the
    sample deviation over sqrt(M).

    Args:
      values: [M].
      users: [M], the user of each target; None if each is another's. A single user has no standard
        error (NaN).

    Source: the linearised variance of a ratio of sums (Cochran, 1977, section 2.11).
    """
    return _mean_and_error(values, _numbered(users))


def _numbered(users: np.ndarray | None) -> np.ndarray | None:
    """The users as numbers from 0, without gaps."""
    return None if users is None else np.unique(users, return_inverse=True)[1]


def _mean_and_error(values: np.ndarray, numbers: np.ndarray | None) -> tuple[float, float]:
    mean, sums = values.mean(), values - values.mean()
    if numbers is not None:
        sums = np.bincount(numbers, sums)
    count = len(sums)
    spread = count / (count - 1) * np.square(sums).sum() if count > 1 else np.nan
    return float(mean), float(np.sqrt(spread) / len(values))


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


def metric_per_target(ranks: np.ndarray, metric: str) -> np.ndarray:
    """One metric of each target (`per_target`), by its name: float64 [M].

    Args:
      ranks: [M], from 1.
      metric: HR, NDCG or MRR at a cut-off, as in "HR@10".
    """
    return per_target(ranks, [int(metric.rpartition("@")[2])])[metric]


def rank_metrics(
    ranks: np.ndarray, *, users: np.ndarray | None = None
) -> tuple[dict[str, float], dict[str, float]]:
    """Means and standard errors (`mean_and_error`) of the metrics over the targets, by name.

    Args:
      ranks: [M], from 1.
      users: [M], the user of each target; None if each is another's.

    Raises:
      ValueError: There are no targets.
    """
    if len(ranks) == 0:
        raise ValueError("there are no targets: a metric needs at least one")
    return _means_and_errors(per_target(ranks), users)


def _means_and_errors(
    values: Mapping[str, np.ndarray], users: np.ndarray | None
) -> tuple[dict[str, float], dict[str, float]]:
    numbers = _numbered(users)
    both = {name: _mean_and_error(own, numbers) for name, own in values.items()}
    return {name: mean for name, (mean, _) in both.items()}, {
        name: error for name, (_, error) in both.items()
    }


def group_auc(ranks: np.ndarray, num_candidates: np.ndarray) -> float:
    """GAUC: the share of other candidates that rank below the target, averaged over targets.

    Args:
      ranks: [M], with mean ties, so that a tie counts one half, as in an AUC. A target whose rank
        is infinite is below all other candidates.
      num_candidates: [M] or a scalar, number of candidates of each row, including the target.
    """
    others = np.maximum(np.asarray(num_candidates, np.float64) - 1.0, 1.0)
    above = np.minimum(np.asarray(ranks, np.float64) - 1.0, others)
    return float(np.mean(1.0 - above / others))


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
      `popularity@K`, the mean number of training events of a recommended item. It is left out if
      all lists are empty.
    """
    k = top.shape[1]
    top = top[top > 0]
    values = {f"coverage@{k}": np.unique(top).size / num_items}
    if item_counts is not None and top.size:
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

    def record(
        self, values: Mapping[str, np.ndarray], users: np.ndarray | None = None
    ) -> dict[str, Any]:
        """The bucket's metrics, ready for JSON.

        Args:
          values: Metric name to its value for each target, [M].
          users: [M], the user of each target; None if each is another's.

        Returns:
          `name`, `low`, `high`, `targets`, `metrics` and `standard_errors`; the last two are empty
          where the bucket has no targets.
        """
        targets = int(self.inside.sum())
        own = {name: of_all[self.inside] for name, of_all in values.items()} if targets else {}
        means, errors = _means_and_errors(own, None if users is None else users[self.inside])
        return {
            "name": self.name,
            "low": self.low,
            "high": self.high,
            "targets": targets,
            "metrics": means,
            "standard_errors": errors,
        }


def length_edges(lengths: np.ndarray) -> tuple[int, ...]:
    """Lower bounds of the buckets of history lengths: up to 500, and on to 10,000 where needed.

    Args:
      lengths: [M], the number of events before each target. A bound above 500 is left out if no
        history is that long.
    """
    longest = max(lengths, default=0)
    return (*BUCKET_EDGES, *(edge for edge in _LONG_EDGES if edge <= longest))


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
      ValueError: The edges do not ascend from 0.
    """
    if list(edges) != sorted(set(edges)) or not edges or edges[0] != 0:
        raise ValueError(f"bucket edges must ascend from 0, got {tuple(edges)}")
    buckets = []
    for low, next_low in zip(edges, [*edges[1:], None], strict=True):
        inside = values >= low
        if next_low is not None:
            inside &= values < next_low
        high: float | None
        if unit == "events":
            high = None if next_low is None else int(next_low) - 1
            name = f"{low:,}+" if high is None else f"{low:,}-{high:,}"
            if high == low:
                name = f"{low:,}"
        else:
            high = next_low
            name = f"{low:.0%}+" if next_low is None else f"{100 * low:.0f}-{next_low:.0%}"
        buckets.append(Bucket(name, low, high, inside))
    if without is not None:
        buckets.append(Bucket(without, None, None, np.isnan(values)))
    return buckets


def bucket_metrics(
    ranks: np.ndarray,
    values: np.ndarray,
    edges: Sequence[float] = BUCKET_EDGES,
    *,
    users: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """The rank metrics in buckets of events, one `Bucket.record` each, lowest first.

    Args:
      ranks: [M].
      values: [M], as in `make_buckets`.
      edges: As in `make_buckets`.
      users: As in `rank_metrics`.
    """
    gains = per_target(ranks)
    return [bucket.record(gains, users) for bucket in make_buckets(values, edges)]
