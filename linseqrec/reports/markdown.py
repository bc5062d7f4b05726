"""A report as Markdown."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from linseqrec.config_fields import to_text
from linseqrec.evaluation.ranks import in_words
from linseqrec.evaluation.result import selected_by
from linseqrec.reports.comparisons import num_samples
from linseqrec.reports.configurations import Configuration, differing_fields
from linseqrec.reports.report import Report


def markdown(report: Report, pictures: Sequence[str] = ()) -> str:
    """The report as Markdown; `pictures` are shown from the folder it stands in."""
    parts = [f"# {report.title}", *_results(report), *_differences(report), *_comparisons(report)]
    parts += [f"![{Path(name).stem.replace('_', ' ')}]({name})" for name in pictures]
    if report.unfinished:
        listed = "\n".join(f"- `{run.folder}`: {run.stage}" for run in report.unfinished)
        parts.append(f"## Not finished, and not in the tables\n\n{listed}")
    return "\n\n".join(parts) + "\n"


def _results(report: Report) -> Iterator[str]:
    runs = [run for configuration in report.configurations for run in configuration.runs]
    yield (
        f"{len(report.configurations)} configurations, {len(runs)} runs. Mean ± standard deviation "
        "over seeds (a single seed has none); floors have no seeds. The tables are in the order of "
        f"test {report.metrics[0]}, seen items {in_words(report.filters[0])}. {_selection(report)}"
    )
    protocol = runs[0].protocol
    for which in report.filters:
        rows = [
            [
                configuration.label,
                str(len(configuration.runs)),
                *(_mean_and_deviation(configuration, which, name) for name in report.metrics),
            ]
            for configuration in report.configurations
        ]
        rows += [
            [name, "", *(f"{summary['metrics'][which][metric]:.4f}" for metric in report.metrics)]
            for name, summary in report.references.items()
        ]
        yield (
            f"## Seen items {in_words(which)}\n\n{protocol['split'].capitalize()}, "
            f"{protocol['targets']:,} targets of {protocol['users']:,} users, "
            f"{protocol['candidates']} ({protocol['num_items']:,}) ranked, {protocol['ties']} ties."
        )
        yield _table(["configuration", "seeds", *report.metrics], rows, text_columns=1)


def _selection(report: Report) -> str:
    """What selected the checkpoints, by configuration where it was not the same for all."""
    selected: dict[str, list[str]] = {}
    for configuration in report.configurations:
        how = selected_by(configuration.experiment.evaluation.filter_seen)
        selected.setdefault(how, []).append(configuration.label)
    if len(selected) == 1:
        return f"Checkpoints are selected by {next(iter(selected))}."
    each = (f"{how} ({', '.join(labels)})" for how, labels in selected.items())
    return f"Checkpoints are selected by {'; '.join(each)}."


def _mean_and_deviation(configuration: Configuration, which: str, metric: str) -> str:
    values = configuration.by_seed(which, metric)
    deviation = f" ± {values.std(ddof=1):.4f}" if len(values) > 1 else ""
    return f"{values.mean():.4f}{deviation}"


def _differences(report: Report) -> Iterator[str]:
    # Those of one name say in their labels how they differ.
    if len({each.experiment.name for each in report.configurations}) == 1:
        return
    differing = differing_fields([each.experiment for each in report.configurations])
    rows = [
        [field, *("" if value is None else to_text(value) for value in values)]
        for field, values in differing.items()
        if field != "name"
    ]
    header = ["field", *(each.label for each in report.configurations)]
    yield "## What differs between the configurations"
    yield _table(header, rows, text_columns=len(header))


def _comparisons(report: Report) -> Iterator[str]:
    if not report.comparisons:
        return
    first = report.comparisons[0].result
    yield (
        "## Differences\n\n"
        f"Paired bootstrap over {first.users:,} users, {num_samples(len(report.comparisons)):,} "
        "resamplings, the seeds averaged target by target: the interval and p (two-sided; Holm's "
        f"correction is for the {len(report.comparisons)} comparisons of this table) speak of the "
        "users that were drawn. Of training speaks the standard error over seeds, where both "
        "configurations have two or more; a difference between single seeds may be theirs, however "
        "small its p."
    )
    rows = [
        [
            comparison.first,
            comparison.second,
            comparison.metric,
            in_words(comparison.which),
            f"{comparison.result.difference:+.4f}",
            "" if comparison.seeds_error is None else f"{comparison.seeds_error:.4f}",
            f"{comparison.result.low:+.4f} to {comparison.result.high:+.4f}",
            f"{comparison.result.p_value:.4f}",
            f"{comparison.p_holm:.4f}",
        ]
        for comparison in report.comparisons
    ]
    header = ["first", "second", "metric", "seen items", "first - second"]
    header += ["error over seeds", f"{first.confidence:.0%} interval", "p", "p, Holm"]
    yield _table(header, rows, text_columns=4)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int) -> str:
    """A Markdown table; the columns after `text_columns` are numbers, set to the right."""
    rule = ["---"] * text_columns + ["---:"] * (len(header) - text_columns)
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))
