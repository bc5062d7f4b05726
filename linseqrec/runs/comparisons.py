"""Pairs of configurations compared: the difference, its interval, and its p-value."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from statsmodels.stats.multitest import multipletests

from linseqrec.errors import RunsError
from linseqrec.evaluation.significance import PairedDifference, paired_bootstrap
from linseqrec.runs.configurations import Configuration

_MIN_SAMPLES = 10_000


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two configurations under one filter and metric.

    Attributes:
      first: A configuration's label.
      second: Another's.
      filter_seen: The filter of seen items.
      metric: The metric.
      result: The first minus the second.
      p_holm: The p-value with Holm's correction for all comparisons of the report.
      seeds_error: The standard error of the difference over seeds, √(s₁² / n₁ + s₂² / n₂) of the
        standard deviations over n seeds; None where either configuration has a single seed.
    """

    first: str
    second: str
    filter_seen: str
    metric: str
    result: PairedDifference
    p_holm: float
    seeds_error: float | None

    def row(self) -> dict[str, Any]:
        """The comparison as a row of a table."""
        values = dataclasses.asdict(self)
        return values | values.pop("result")


def num_samples(comparisons: int) -> int:
    """Resamplings of each bootstrap, enough that a corrected p-value of .005 is possible."""
    return max(_MIN_SAMPLES, 400 * comparisons)


def compare(
    configurations: Sequence[Configuration],
    filters: Sequence[str],
    metrics: Sequence[str],
    *,
    against: str = "",
) -> list[Comparison]:
    """Compares every pair of configurations under every filter and metric.

    Seeds are averaged target by target before users are resampled.

    Args:
      configurations: Of comparable runs.
      filters: Filters of seen items.
      metrics: Rank metrics.
      against: A label: only pairs with this configuration. Empty: all pairs.

    Raises:
      RunsError: If no configuration is called `against`, with the labels that exist.
    """
    labels = [configuration.label for configuration in configurations]
    if against and against not in labels:
        raise RunsError(f"no configuration {against!r}; there are {', '.join(labels)}")
    pairs = [
        pair
        for pair in itertools.combinations(configurations, 2)
        if not against or against in (pair[0].label, pair[1].label)
    ]
    cases = list(itertools.product(filters, metrics, pairs))
    if not cases:
        return []
    results = [
        paired_bootstrap(
            first.per_target(filter_seen, metric),
            second.per_target(filter_seen, metric),
            first.runs[0].users,
            samples=num_samples(len(cases)),
        )
        for filter_seen, metric, (first, second) in cases
    ]
    _, corrected, *_ = multipletests([result.p_value for result in results], method="holm")
    return [
        Comparison(
            first.label,
            second.label,
            filter_seen,
            metric,
            result,
            float(p_holm),
            _seeds_error(first.by_seed(filter_seen, metric), second.by_seed(filter_seen, metric)),
        )
        for (filter_seen, metric, (first, second)), result, p_holm in zip(
            cases, results, corrected, strict=True
        )
    ]


def _seeds_error(first: np.ndarray, second: np.ndarray) -> float | None:
    if min(len(first), len(second)) < 2:
        return None
    return math.sqrt(sum(values.var(ddof=1) / len(values) for values in (first, second)))
