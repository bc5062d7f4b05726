"""What the differences between configurations are worth."""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np

from linseqrec.errors import ReportError
from linseqrec.evaluation.significance import PairedDifference, holm, paired_bootstrap
from linseqrec.reports.configurations import Configuration

_LEAST_SAMPLES = 10_000


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two configurations under one filter and metric.

    Attributes:
      which: The filter.
      metric: The metric.
      first: A configuration's label.
      second: Another's.
      result: The first minus the second.
      p_holm: The p-value corrected for all comparisons of the report.
      seeds_error: The standard error of the difference over seeds, √(s₁² / n₁ + s₂² / n₂) of the
        standard deviations over n seeds; None where either has but one.
    """

    which: str
    metric: str
    first: str
    second: str
    result: PairedDifference
    p_holm: float
    seeds_error: float | None


def num_samples(comparisons: int) -> int:
    """Resamplings of each bootstrap: the least p-value there is stays .005 after the correction."""
    return max(_LEAST_SAMPLES, 400 * comparisons)


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
      filters: Filters.
      metrics: Rank metrics.
      against: A label: only pairs with this configuration. Empty: all pairs.

    Raises:
      ReportError: If no configuration is called `against`, with those there are.
    """
    labels = [configuration.label for configuration in configurations]
    if against and against not in labels:
        raise ReportError(f"no configuration {against!r}; there are {', '.join(labels)}")
    pairs = [
        pair
        for pair in itertools.combinations(configurations, 2)
        if not against or against in (pair[0].label, pair[1].label)
    ]
    cases = [(which, metric, *pair) for which in filters for metric in metrics for pair in pairs]
    results = [
        paired_bootstrap(
            first.per_target(which, metric),
            second.per_target(which, metric),
            first.runs[0].users,
            samples=num_samples(len(cases)),
        )
        for which, metric, first, second in cases
    ]
    corrected = holm([result.p_value for result in results])
    return [
        Comparison(
            which,
            metric,
            first.label,
            second.label,
            result,
            float(p_holm),
            _seeds_error(first.by_seed(which, metric), second.by_seed(which, metric)),
        )
        for (which, metric, first, second), result, p_holm in zip(
            cases, results, corrected, strict=True
        )
    ]


def _seeds_error(first: np.ndarray, second: np.ndarray) -> float | None:
    if min(len(first), len(second)) < 2:
        return None
    return math.sqrt(sum(values.var(ddof=1) / len(values) for values in (first, second)))
