"""The files of a report."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from linseqrec.evaluation.figures import save_figure
from linseqrec.evaluation.metrics import check_metric
from linseqrec.evaluation.ranks import in_words
from linseqrec.reports import figures
from linseqrec.reports.markdown import markdown
from linseqrec.reports.report import Report


def write_report(report: Report, folder: Path, *, drawn: str = "NDCG@10") -> list[Path]:
    """Writes `report.md`, `report.csv`, `comparisons.csv` and two figures.

    Args:
      report: The report.
      folder: Made if need be.
      drawn: The figures' metric.

    Returns:
      The files.

    Raises:
      MetricError: If the figures' metric is none.
    """
    check_metric(drawn)
    folder.mkdir(parents=True, exist_ok=True)
    shown = figures.drawn(report.configurations, drawn, report.filters[0])
    title = report.title
    if any(len(configuration.runs) > 1 for configuration in shown):
        title += "; means over seeds"
    if len(shown) < len(report.configurations):
        title += f"; the {len(shown)} best of {len(report.configurations)} by validation {drawn}"
        title += f", seen items {in_words(report.filters[0])}"
    pictures = {
        "learning_curves.png": figures.curves(shown, report.filters, drawn, title),
        "by_length.png": figures.by_length(shown, report.filters, drawn, f"{title}; test"),
    }
    (folder / "report.md").write_text(markdown(report, list(pictures)))
    _write_csv(folder / "report.csv", _rows(report))
    _write_csv(folder / "comparisons.csv", _comparison_rows(report))
    return [
        *(folder / name for name in ("report.md", "report.csv", "comparisons.csv")),
        *(save_figure(figure, folder / name) for name, figure in pictures.items()),
    ]


def _rows(report: Report) -> list[dict[str, Any]]:
    rows = []
    for which in report.filters:
        for metric in report.metrics:
            for configuration in report.configurations:
                values = configuration.by_seed(which, metric)
                seeds = [run.experiment.training.seed for run in configuration.runs]
                rows.append(
                    {
                        "configuration": configuration.label,
                        "kind": "model",
                        "filter_seen": which,
                        "metric": metric,
                        "seeds": len(values),
                        "mean": values.mean(),
                        "sd": values.std(ddof=1) if len(values) > 1 else "",
                        "by_seed": " ".join(
                            f"{seed}:{value}" for seed, value in zip(seeds, values, strict=True)
                        ),
                    }
                )
            for name, summary in report.references.items():
                rows.append(
                    {
                        "configuration": name,
                        "kind": "reference",
                        "filter_seen": which,
                        "metric": metric,
                        "mean": summary["metrics"][which][metric],
                    }
                )
    return rows


def _comparison_rows(report: Report) -> list[dict[str, Any]]:
    return [
        {
            "first": comparison.first,
            "second": comparison.second,
            "filter_seen": comparison.which,
            "metric": comparison.metric,
            "difference": comparison.result.difference,
            "low": comparison.result.low,
            "high": comparison.result.high,
            "confidence": comparison.result.confidence,
            "users": comparison.result.users,
            "p_value": comparison.result.p_value,
            "p_holm": comparison.p_holm,
            "seeds_error": "" if comparison.seeds_error is None else comparison.seeds_error,
        }
        for comparison in report.comparisons
    ]


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """The rows, headed by the first one's keys: it has them all. No rows: an empty file."""
    with path.open("w", newline="") as file:
        if rows:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
