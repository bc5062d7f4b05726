"""The report: finished runs of one data set over their seeds, beside floors, compared in pairs."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from linseqrec.evaluation.metrics import check_metric
from linseqrec.reports.comparability import check_comparable
from linseqrec.reports.comparisons import Comparison, compare
from linseqrec.reports.configurations import Configuration, group_by_configuration
from linseqrec.reports.runs import UnfinishedRun, find_runs
from linseqrec.training.results import title_of_results

METRICS = ("HR@10", "NDCG@10")


@dataclasses.dataclass(frozen=True)
class Report:
    """What runs found together.

    Attributes:
      configurations: The best first, by the first metric under the first filter.
      comparisons: Of their pairs.
      unfinished: Runs without results, or whose configuration cannot be read.
      filters: Filters of seen items.
      metrics: Rank metrics.
    """

    configurations: list[Configuration]
    comparisons: list[Comparison]
    unfinished: list[UnfinishedRun]
    filters: tuple[str, ...]
    metrics: tuple[str, ...]

    @property
    def title(self) -> str:
        """The data, and what a reader must know of each run."""
        runs = [run for configuration in self.configurations for run in configuration.runs]
        return title_of_results(runs[0].results, [run.experiment.note for run in runs])

    @property
    def references(self) -> dict[str, dict[str, Any]]:
        """The floors, and in a generated world the oracle: name to summary."""
        results = self.configurations[0].runs[0].results
        return {
            name: summary for name, summary in results["test"].items() if name != results["name"]
        }


def make_report(
    folders: Sequence[Path], metrics: Sequence[str] = METRICS, *, against: str = ""
) -> Report:
    """Reads the runs below some folders and compares them.

    Args:
      folders: Of runs, or holding them at any depth.
      metrics: Rank metrics (`metrics.per_target`).
      against: A configuration's label, to compare the others with it only.

    Raises:
      ReportError: If runs cannot be compared, with what differs, or something asked for is not
        there.
      MetricError: If a metric is none.
    """
    for metric in metrics:
        check_metric(metric)
    finished, unfinished = find_runs(folders)
    check_comparable(finished)
    filters = tuple(finished[0].protocol["filter_seen"])
    configurations = sorted(
        group_by_configuration(finished),
        key=lambda configuration: -configuration.by_seed(filters[0], metrics[0]).mean(),
    )
    comparisons = compare(configurations, filters, metrics, against=against)
    return Report(configurations, comparisons, unfinished, filters, tuple(metrics))
