"""A report: finished runs of one data set over their seeds, beside baselines, compared in pairs."""

import dataclasses
import itertools
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import polars as pl

from linseqrec.config_fields import to_text
from linseqrec.evaluation.lists import for_spreadsheets
from linseqrec.evaluation.metrics import check_metric
from linseqrec.evaluation.ranks import in_words
from linseqrec.evaluation.result import (
    SELECTION_METRIC,
    filter_in_words,
    filters_by_fit,
)
from linseqrec.files import replacing
from linseqrec.runs.comparable import check_comparable
from linseqrec.runs.comparisons import (
    Comparison,
    compare,
    compare_with_counting,
    num_samples,
)
from linseqrec.runs.configurations import (
    Configuration,
    as_computed,
    differing_fields,
    group_by_configuration,
)
from linseqrec.runs.figures import COLOURS, run_figures, save_figure
from linseqrec.runs.finished import ORACLE, FinishedRun, baselines_of, find_runs, title_of
from linseqrec.runs.tables import escape, markdown_table

METRICS = ("HR@10", "NDCG@10")
# The corrected p-value below which a model is said to be better or worse than counting.
_SIGNIFICANCE = 0.05
# The palette has no more colours.
_MAX_DRAWN = len(COLOURS)
_VALIDATION = f"validation {SELECTION_METRIC}"
# Up to this many configurations, all pairs are compared: the time grows with their square.
_MAX_PAIRED = 10


@dataclasses.dataclass(frozen=True)
class Report:
    """The results of comparable runs.

    Attributes:
      configurations: The best in validation first, by NDCG@10 under the first filter.
      tried: How many configurations each model has, by its name: more than in `configurations`
        where only those that validation selects are reported.
      comparisons: Of pairs of configurations.
      against_counting: Of each configuration with the best counting baseline.
      unfinished: The workdirs of runs that are not in the tables, with the reason in words.
      filters: Filters of seen items, first the one that fits the log (`filters_by_fit`).
      metrics: Rank metrics.
    """

    configurations: list[Configuration]
    tried: dict[str, int]
    comparisons: list[Comparison]
    against_counting: list[Comparison]
    unfinished: dict[Path, str]
    filters: tuple[str, ...]
    metrics: tuple[str, ...]

    @property
    def runs(self) -> list[FinishedRun]:
        """The finished runs, in the order of their configurations."""
        return [run for configuration in self.configurations for run in configuration.runs]

    def rows(self) -> list[dict[str, Any]]:
        """The results as rows of a table: filter by filter, metric by metric, system by system."""
        rows: list[dict[str, Any]] = []
        for filter_seen, metric in itertools.product(self.filters, self.metrics):
            for each in self.configurations:
                values = each.by_seed(filter_seen, metric)
                seeds = [run.experiment.training.seed for run in each.runs]
                pairs = zip(seeds, values, strict=True)
                rows.append(
                    {
                        "configuration": each.label,
                        "kind": "model",
                        "filter_seen": filter_seen,
                        "metric": metric,
                        _VALIDATION: each.validation(filter_seen, SELECTION_METRIC),
                        "seeds": len(values),
                        "mean": values.mean(),
                        "sd": values.std(ddof=1) if len(values) > 1 else None,
                        "by_seed": " ".join(f"{seed}:{value}" for seed, value in pairs),
                    }
                )
            rows += [
                {
                    "configuration": name,
                    "kind": "reference",
                    "filter_seen": filter_seen,
                    "metric": metric,
                    "mean": summary["metrics"][filter_seen][metric],
                }
                for name, summary in baselines_of(self.runs).items()
            ]
        return rows


def make_report(
    folders: Sequence[Path],
    metrics: Sequence[str] = METRICS,
    *,
    against: str = "",
    selected: bool = False,
) -> Report:
    """Reads the runs below some folders and compares them.

    Args:
      folders: Workdirs, or folders that hold workdirs at any depth.
      metrics: Rank metrics (`metrics.per_target`).
      against: A configuration's label, to compare the others with it only. Empty: all pairs, or of
        more than ten configurations each with the best in validation.
      selected: Whether to report only the best configuration by validation of each model, by its
        name.

    Raises:
      RunsError: If no run has finished, runs cannot be compared, or no configuration is called
        `against`.
      MetricError: If there is no such metric.
    """
    for metric in metrics:
        check_metric(metric)
    finished, unfinished = find_runs(folders)
    check_comparable({str(run.folder): run.conditions for run in finished})
    filters = filters_by_fit(finished[0].protocol)
    configurations = sorted(
        group_by_configuration(finished),
        key=lambda configuration: -configuration.validation(filters[0], SELECTION_METRIC),
    )
    tried = dict(Counter(configuration.experiment.name for configuration in configurations))
    if selected:
        configurations = _best_of_each_model(configurations)
    if not against and len(configurations) > _MAX_PAIRED:
        against = configurations[0].label
    comparisons = compare(configurations, filters, metrics, against=against)
    counting = compare_with_counting(configurations, filters, metrics)
    return Report(configurations, tried, comparisons, counting, unfinished, filters, tuple(metrics))


def _best_of_each_model(configurations: Sequence[Configuration]) -> list[Configuration]:
    """Of each model, by its name, the first configuration."""
    best: dict[str, Configuration] = {}
    for configuration in configurations:
        best.setdefault(configuration.experiment.name, configuration)
    return list(best.values())


def write_report(report: Report, folder: Path, *, metric: str = "NDCG@10") -> list[Path]:
    """Writes `report.md`, `report.csv`, `comparisons.csv` and two figures.

    Args:
      report: The report.
      folder: Made if it does not exist.
      metric: The figures' metric.

    Returns:
      The files.

    Raises:
      MetricError: If there is no such metric.
    """
    check_metric(metric)
    title, shown = title_of(report.runs), report.configurations[:_MAX_DRAWN]
    if len(shown) < len(report.configurations):
        title += f"; the {len(shown)} best of {len(report.configurations)} by {_VALIDATION}"
        title += f", seen items {in_words(report.filters[0])}"
    figures = run_figures(shown, report.filters, metric, title)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "report.md") as partial:
        partial.write_text(to_markdown(report, list(figures)))
    _write_csv(folder / "report.csv", report.rows())
    _write_csv(
        folder / "comparisons.csv",
        [each.row() for each in (*report.comparisons, *report.against_counting)],
    )
    return [
        *(folder / name for name in ("report.md", "report.csv", "comparisons.csv")),
        *(save_figure(figure, folder / name) for name, figure in figures.items()),
    ]


def to_markdown(report: Report, pictures: Sequence[str] = ()) -> str:
    """The report as Markdown.

    Args:
      report: The report.
      pictures: Files in the report's folder that it shows.
    """
    parts = [f"# {escape(title_of(report.runs))}", _beats_counting(report), _overview(report)]
    parts += [*_selected(report), *_results(report), *_differences(report)]
    parts += [*_against_counting(report), *_comparisons(report)]
    parts += [f"![{Path(name).stem.replace('_', ' ')}]({name})" for name in pictures]
    if report.unfinished:
        stages = report.unfinished.items()
        listed = "\n".join(f"- {escape(str(path))}: {escape(stage)}" for path, stage in stages)
        parts.append(f"## Not finished, and not in the tables\n\n{listed}")
    return "\n\n".join(parts) + "\n"


def _overview(report: Report) -> str:
    counts = {"configuration": len(report.configurations), "run": len(report.runs)}
    return (
        ", ".join(f"{count} {what}{'s' * (count > 1)}" for what, count in counts.items())
        + ". Mean ± standard deviation over seeds (a single seed has none); baselines have no "
        f"seeds. The tables are in the order of {_VALIDATION}, seen items "
        f"{in_words(report.filters[0])}. {_checkpoints(report)}"
    )


def _selected(report: Report) -> Iterator[str]:
    """What validation selects of each model, where there is something to select."""
    if max(report.tried.values()) == 1:
        return
    filter_seen = report.filters[0]
    yield (
        "## Selected in validation\n\n"
        f"Of each model, the configuration with the best {_VALIDATION}, seen items "
        f"{in_words(filter_seen)}, and what it reaches on the test split. The test split selects "
        "nothing."
    )
    rows = [
        [
            each.label,
            str(report.tried[each.experiment.name]),
            f"{each.validation(filter_seen, SELECTION_METRIC):.4f}",
            *(f"{each.by_seed(filter_seen, metric).mean():.4f}" for metric in report.metrics),
        ]
        for each in _best_of_each_model(report.configurations)
    ]
    header = ["selected", "of configurations", _VALIDATION, *report.metrics]
    yield markdown_table(header, rows, text_columns=1)


def _results(report: Report) -> Iterator[str]:
    protocol, rows = report.runs[0].protocol, report.rows()
    for filter_seen in report.filters:
        cells: dict[str, list[str]] = {}
        for row in rows:
            if row["filter_seen"] == filter_seen:
                system, sd = row["configuration"], row.get("sd")
                cell = f"{row['mean']:.4f}" + ("" if sd is None else f" ± {sd:.4f}")
                validation = f"{row[_VALIDATION]:.4f}" if _VALIDATION in row else ""
                start = [system, str(row.get("seeds", "")), validation]
                cells.setdefault(system, start).append(cell)
        yield (
            f"## Seen items {filter_in_words(filter_seen, protocol)}\n\n"
            f"{protocol['split'].capitalize()}, {protocol['targets']:,} targets of "
            f"{protocol['users']:,} users, {protocol['candidates']} ({protocol['num_items']:,}) "
            f"ranked, {protocol['ties']} ties."
        )
        header = ["configuration", "seeds", _VALIDATION, *report.metrics]
        yield markdown_table(header, list(cells.values()), text_columns=1)


def _checkpoints(report: Report) -> str:
    """What selected the checkpoints, by configuration where it was not the same for all."""
    labels: dict[str, list[str]] = {}
    for configuration in report.configurations:
        for criterion in dict.fromkeys(run.selected_by for run in configuration.runs):
            labels.setdefault(escape(criterion), []).append(escape(configuration.label))
    if len(labels) == 1:
        return f"Checkpoints are selected by {next(iter(labels))}."
    each = (f"{criterion} ({', '.join(own)})" for criterion, own in labels.items())
    return f"Checkpoints are selected by {'; '.join(each)}."


def _differences(report: Report) -> Iterator[str]:
    # The labels of configurations with one name already say how they differ.
    if len({configuration.experiment.name for configuration in report.configurations}) == 1:
        return
    computed = [as_computed(each.runs[0]) for each in report.configurations]
    differing = differing_fields(computed)
    rows = [
        [field, *("" if value is None else to_text(value) for value in values)]
        for field, values in differing.items()
        if field != "name"
    ]
    rows.append(["epoch of the checkpoint", *map(_epoch, report.configurations)])
    header = ["field", *(each.label for each in report.configurations)]
    yield "## What differs between the configurations"
    yield markdown_table(header, rows, text_columns=len(header))


def _epoch(configuration: Configuration) -> str:
    """The epoch that was selected, averaged over seeds; `num_epochs` is no more than a limit."""
    epochs = [run.results.get("epoch") for run in configuration.runs]
    known = all(isinstance(epoch, float) for epoch in epochs)
    return f"{statistics.fmean(cast(list[float], epochs)):.1f}" if known else ""


def _beats_counting(report: Report) -> str:
    """Whether models are better than counting, in the first metric under the first filter."""
    filter_seen, metric = report.filters[0], report.metrics[0]
    where = f"in test {metric}, seen items {in_words(filter_seen)}"
    tests = [
        each
        for each in report.against_counting
        if (each.filter_seen, each.metric) == (filter_seen, metric)
    ]
    if not tests:
        means = {
            name: summary["metrics"][filter_seen][metric]
            for name, summary in baselines_of(report.runs).items()
            if name != ORACLE
        }
        if not means:
            return "**Does it beat counting?** These runs hold no baselines."
        best, model = max(means, key=means.__getitem__), report.configurations[0]
        mean = model.by_seed(filter_seen, metric).mean()
        return (
            "**Does it beat counting?** Not tested, because these runs do not hold the ranks of "
            f"baselines. {escape(model.label)} has {mean:.4f} and {best}, the best counting "
            f"baseline, {means[best]:.4f} {where}."
        )
    first, verdicts = tests[0], Counter(map(_verdict, tests))
    result, counts, which = first.result, [], ""
    if len(tests) > 1:
        which = ", the best in validation,"
        counts = [f"{number} {verdict}" for verdict, number in verdicts.items()]
    return (
        f"**Does it beat counting?** {escape(first.first)}{which} is {_verdict(first)} than "
        f"{escape(first.second)}, the best counting baseline by {SELECTION_METRIC}, "
        f"{where}: {result.difference:+.4f}, {result.confidence:.0%} "
        f"interval {result.low:+.4f} to {result.high:+.4f}, p {first.p_holm:.4f}; {_seeds(first)}."
        + (f" Of {len(tests)} configurations: {', '.join(counts)}." if counts else "")
    )


def _seeds(comparison: Comparison) -> str:
    error = comparison.seeds_error
    return "a single seed" if error is None else f"standard error over seeds {error:.4f}"


def _verdict(comparison: Comparison) -> str:
    within_seeds = abs(comparison.result.difference) <= comparison.seeds_margin
    if comparison.p_holm >= _SIGNIFICANCE or within_seeds:
        return "neither better nor worse"
    return "better" if comparison.result.difference > 0 else "worse"


def _against_counting(report: Report) -> Iterator[str]:
    if not report.against_counting:
        return
    yield (
        "## Against the best counting baseline\n\n"
        f"The best baseline by test {SELECTION_METRIC} under each filter. {_how(report, True)}"
    )
    yield _comparison_table(report.against_counting)


def _comparisons(report: Report) -> Iterator[str]:
    if not report.comparisons:
        return
    how = _how(report, False)
    if len(report.configurations) > _MAX_PAIRED:
        how += " Of so many configurations each is compared with one (`--against`)."
    yield f"## Differences\n\n{how}"
    yield _comparison_table(report.comparisons)


def _how(report: Report, counting: bool) -> str:
    """How the comparisons of a table were made."""
    comparisons = report.against_counting if counting else report.comparisons
    first, count = comparisons[0].result, len(comparisons)
    needs = "two seeds" if counting else "two seeds of both configurations"
    return (
        f"Paired bootstrap over {first.users:,} users with {num_samples(count):,} resamplings; "
        "seeds are averaged target by target. The interval and p (two-sided) describe the sampling "
        f"of users; Holm's correction is for the {count} comparisons of this table. The standard "
        f"error over seeds describes training; it needs {needs}. A difference "
        f"{'of a single seed' if counting else 'between single seeds'} may be due to the "
        f"{'seed' if counting else 'seeds'}, however small its p."
    )


def _comparison_table(comparisons: Sequence[Comparison]) -> str:
    rows = [
        [
            comparison.first,
            comparison.second,
            comparison.metric,
            in_words(comparison.filter_seen),
            f"{comparison.result.difference:+.4f}",
            "" if comparison.seeds_error is None else f"{comparison.seeds_error:.4f}",
            f"{comparison.result.low:+.4f} to {comparison.result.high:+.4f}",
            f"{comparison.result.p_value:.4f}",
            f"{comparison.p_holm:.4f}",
        ]
        for comparison in comparisons
    ]
    header = ["first", "second", "metric", "seen items", "first - second", "error over seeds"]
    header += [f"{comparisons[0].result.confidence:.0%} interval", "p", "p, Holm"]
    return markdown_table(header, rows, text_columns=4)


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes rows for spreadsheets, a column a key; no rows, an empty file."""
    table = pl.DataFrame(rows, infer_schema_length=None)
    with replacing(path) as partial:
        partial.touch()
        if rows:
            for_spreadsheets(table).write_csv(partial)
