"""The figures of a report, each configuration's seeds averaged."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from linseqrec.evaluation import figures
from linseqrec.evaluation.metrics import bucket_metrics
from linseqrec.evaluation.ranks import in_words
from linseqrec.reports.configurations import Configuration
from linseqrec.training import workdir

# As many as the palette tells apart.
MOST_DRAWN = len(figures.COLOURS)


def drawn(configurations: Sequence[Configuration], metric: str, which: str) -> list[Configuration]:
    """Those that a figure has room for: the best in validation under a filter, in their order."""

    def score(configuration: Configuration) -> float:
        return float(
            np.mean(
                [
                    run.results["validation"][run.results["name"]]["metrics"][which][metric]
                    for run in configuration.runs
                ]
            )
        )

    best = sorted(configurations, key=score, reverse=True)[:MOST_DRAWN]
    return [configuration for configuration in configurations if configuration in best]


def curves(
    configurations: Sequence[Configuration], filters: Sequence[str], metric: str, title: str
) -> Figure:
    """Validation by epoch, a panel a filter; the mean over seeds while all of them train."""
    keys = [f"validation/{which}/{metric}" for which in filters]
    lines = {
        configuration.label: [
            record for key in keys for record in _mean_records(configuration, key)
        ]
        for configuration in configurations
    }
    return figures.learning_curves(lines, keys, title=title, horizontal="epoch")


def _mean_records(configuration: Configuration, key: str) -> list[dict[str, float]]:
    by_seed = [
        [record for record in workdir.read_metrics(run.folder) if key in record]
        for run in configuration.runs
    ]
    # The n-th validation of each: a seed's epochs may be some steps longer than another's.
    return [
        {name: float(np.mean([record[name] for record in records])) for name in ("epoch", key)}
        for records in zip(*by_seed, strict=False)
    ]


def by_length(
    configurations: Sequence[Configuration], filters: Sequence[str], metric: str, title: str
) -> Figure:
    """A metric by history length beside the floors, a panel a filter."""
    first = configurations[0].runs[0].results
    references = {name: summary for name, summary in first["test"].items() if name != first["name"]}
    panels = {}
    for which in filters:
        systems = {
            configuration.label: _bucket_records(configuration, which, metric)
            for configuration in configurations
        }
        systems |= {name: summary["buckets"][which] for name, summary in references.items()}
        panels[f"events before the target; seen items {in_words(which)}"] = systems
    return figures.metric_by_bucket(panels, metric, title=title, references=references)


def _bucket_records(configuration: Configuration, which: str, metric: str) -> list[dict[str, Any]]:
    """The bucket records of the seeds' mean: its standard error is not the mean of theirs."""
    run = configuration.runs[0]
    values = configuration.per_target(which, metric)
    records = []
    for bucket in bucket_metrics(run.ranks[which], run.lengths, run.protocol["bucket_edges"]):
        inside = run.lengths >= bucket["low"]
        if bucket["high"] is not None:
            inside &= run.lengths <= bucket["high"]
        held = values[inside]
        error = held.std(ddof=1) / np.sqrt(len(held)) if len(held) > 1 else np.nan
        records.append(
            bucket
            | {"metrics": {metric: held.mean()} if len(held) else {}}
            | {"standard_errors": {metric: error} if len(held) else {}}
        )
    return records
