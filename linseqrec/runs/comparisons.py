"""Configurations compared, with each other and with counting: difference, interval, p-value."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from statsmodels.stats.multitest import multipletests

from linseqrec.errors import RunsError
from linseqrec.evaluation.metrics import metric_per_target
from linseqrec.evaluation.significance import PairedDifference, over_seeds, paired_bootstrap
from linseqrec.runs.configurations import Configuration
from linseqrec.runs.finished import best_baseline

_MIN_SAMPLES, _MAX_SAMPLES = 10_000, 20_000


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two systems under one filter and metric.

    Attributes:
      first: A configuration's label.
      second: Another's, or the name of a counting baseline.
      filter_seen: The filter of seen items.
      metric: The metric.
      result: The first minus the second.
      p_holm: The p-value with Holm's correction for all comparisons of the same table.
      seeds_error: The standard error of the difference over seeds (`over_seeds`); None where either
        configuration has a single seed. A baseline adds no variance.
      seeds_margin: What the difference must exceed to be more than the seeds' (`over_seeds`).
    """

    first: str
    second: str
    filter_seen: str
    metric: str
    result: PairedDifference
    p_holm: float
    seeds_error: float | None
    seeds_margin: float

    def row(self) -> dict[str, Any]:
        """The comparison as a row of a table."""
        values = dataclasses.asdict(self)
        return values | values.pop("result")


def num_samples(comparisons: int) -> int:
    """The number of resamplings of each bootstrap.

    The least possible corrected p-value is .005 up to 50 comparisons, .02 up to 200, and at most
    .04 beyond.
    """
    return max(_MIN_SAMPLES, min(400 * comparisons, _MAX_SAMPLES), 50 * comparisons)


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
    return _tested(
        [
            _Case(
                first.label,
                second.label,
                filter_seen,
                metric,
                first.per_target(filter_seen, metric),
                second.per_target(filter_seen, metric),
                (first.by_seed(filter_seen, metric), second.by_seed(filter_seen, metric)),
            )
            for filter_seen, metric, (first, second) in itertools.product(filters, metrics, pairs)
        ],
        configurations[0].runs[0].users,
    )


def compare_with_counting(
    configurations: Sequence[Configuration], filters: Sequence[str], metrics: Sequence[str]
) -> list[Comparison]:
    """Compares every configuration with the best counting baseline (`best_baseline`).

    Args:
      configurations: Of comparable runs.
      filters: Filters of seen items. A filter is passed over if no run has a baseline's ranks.
      metrics: Rank metrics.

    Returns:
      Comparisons whose second system is a baseline, which has no seeds.
    """
    runs = [run for configuration in configurations for run in configuration.runs]
    cases = []
    for filter_seen in filters:
        if (best := best_baseline(runs, filter_seen)) is None:
            continue
        for metric, each in itertools.product(metrics, configurations):
            cases.append(
                _Case(
                    each.label,
                    best[0],
                    filter_seen,
                    metric,
                    each.per_target(filter_seen, metric),
                    metric_per_target(best[1], metric),
                    (each.by_seed(filter_seen, metric),),
                )
            )
    return _tested(cases, runs[0].users)


@dataclasses.dataclass(frozen=True)
class _Case:
    """Two systems to compare: their values [M], and the means by seed of those with seeds."""

    first: str
    second: str
    filter_seen: str
    metric: str
    first_values: np.ndarray
    second_values: np.ndarray
    by_seed: tuple[np.ndarray, ...]


def _tested(cases: Sequence[_Case], users: np.ndarray) -> list[Comparison]:
    """The paired bootstrap of each case, with Holm's correction for all of them."""
    if not cases:
        return []
    results = [
        paired_bootstrap(
            case.first_values, case.second_values, users, samples=num_samples(len(cases))
        )
        for case in cases
    ]
    _, corrected, *_ = multipletests([result.p_value for result in results], method="holm")
    return [
        Comparison(
            case.first,
            case.second,
            case.filter_seen,
            case.metric,
            result,
            float(p_holm),
            *over_seeds(*case.by_seed),
        )
        for case, result, p_holm in zip(cases, results, corrected, strict=True)
    ]
