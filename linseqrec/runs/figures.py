"""Figures: learning curves, and a metric by history length or by another value of the history.

Figures are drawn on `Figure` objects, not through pyplot: they need no display and no global state.
The caller gives the title, because the caller knows what must be said of the data ("synthetic").
"""

import itertools
import os
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, ScalarFormatter

from linseqrec.evaluation.metrics import check_metric
from linseqrec.evaluation.ranks import in_words
from linseqrec.evaluation.result import filters_by_fit
from linseqrec.files import replacing
from linseqrec.runs.comparable import check_comparable
from linseqrec.runs.configurations import Configuration, group_by_configuration
from linseqrec.runs.finished import ORACLE, FinishedRun, baselines_of, title_of

# Okabe and Ito's palette without its yellow: distinct with every common colour blindness. Markers
# and dashes repeat the distinction for print in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":")
# The colour of baselines and of an oracle, which differ by their hollow markers.
REFERENCE = "#666666"
REFERENCE_MARKERS = ("o", "s", "^", "D", "v", "<", ">", "*", "p", "h", "P", "X")

# The systems that have the same look in every figure.
SYSTEMS = (
    "RecGRELA",
    "SASRec",
    "HyTRec",
    "SinkRec",
    "Gated DeltaNet",
    "HSTU",
    "FuXi-Linear",
    "Mamba-2",
    "LRURec",
    "GRU4Rec",
    "LinRec",
)
_REFERENCES = (
    "Popularity",
    "Recent popularity",
    "Markov",
    "Decayed Markov",
    "Personal Markov",
    "Timed Markov",
    "Timed Personal Markov",
    ORACLE,
    # The index of a name decides its marker and line style. Add new names at the end.
    "Personal popularity",
)

Record = Mapping[str, Any]


def looks(systems: Sequence[str], references: Collection[str] = ()) -> dict[str, dict[str, Any]]:
    """The colour, marker and line style of each system of a figure.

    A system of `experiments/` and a baseline look the same in every figure. Other systems, such as
    the arms of a sweep, take the remaining looks in their order.

    Args:
      systems: Names, the models' in the same order in all figures of a report.
      references: The names among them that are drawn in grey: baselines, an oracle.
    """
    models = [name for name in systems if name not in references]
    baselines = [name for name in systems if name in references]
    return {
        name: {
            "color": COLOURS[place % len(COLOURS)],
            # Beyond seven systems, a colour comes again with another marker.
            "marker": MARKERS[(place + place // len(COLOURS)) % len(MARKERS)],
            "linestyle": DASHES[place % len(DASHES)],
        }
        for name, place in _places(models, SYSTEMS, 0).items()
    } | {
        name: {
            "color": REFERENCE,
            "marker": REFERENCE_MARKERS[place % len(REFERENCE_MARKERS)],
            "markerfacecolor": "white",
            "linestyle": DASHES[place % len(DASHES)],
        }
        for name, place in _places(baselines, _REFERENCES, len(_REFERENCES)).items()
    }


def _places(names: Sequence[str], known: Sequence[str], first_free: int) -> dict[str, int]:
    """A place for each name: its own among the known ones, or the next that no other name has."""
    taken = {name: known.index(name) for name in names if name in known}
    free = (place for place in itertools.count(first_free) if place not in taken.values())
    return {name: taken[name] if name in taken else next(free) for name in names}


def write_figures(
    folders: Sequence[Path],
    output: Path,
    *,
    metric: str = "NDCG@10",
) -> list[Path]:
    """Draws finished runs together: `learning_curves.png` and `by_length.png`.

    The seeds of one configuration are one system. Two runs with the same configuration and seed are
    two systems, told apart by their folders.

    Args:
      folders: The runs' workdirs, each once.
      output: Folder of the figures; made if it does not exist.
      metric: The metric that is drawn.

    Returns:
      The files.

    Raises:
      MetricError: If there is no such metric.
      RunsError: If a run has not finished, or the runs cannot be compared.
      WorkdirError: If a folder is not the workdir of a run.
    """
    check_metric(metric)
    runs = [FinishedRun.open(folder) for folder in folders]
    check_comparable({str(run.folder): run.conditions for run in runs})
    configurations = group_by_configuration(runs, repeats=True)
    filters = filters_by_fit(runs[0].protocol)
    figures = run_figures(configurations, filters, metric, title_of(runs))
    # The files are written when all figures are drawn, so that an error leaves none of them.
    return [save_figure(figure, output / name) for name, figure in figures.items()]


def run_figures(
    configurations: Sequence[Configuration],
    filters: Sequence[str],
    metric: str,
    title: str,
) -> dict[str, Figure]:
    """The figures of comparable configurations, by file name.

    Args:
      configurations: The systems.
      filters: Filters of seen items, a panel each.
      metric: The metric that is drawn.
      title: What the runs share (`title_of`).
    """
    logs = {each.label: [records for records in each.logs() if records] for each in configurations}
    curves: dict[str, Any] = {label: seeds for label, seeds in logs.items() if seeds}
    if any(len(configuration.runs) > 1 for configuration in configurations):
        title += "; means over seeds"
    runs = [run for configuration in configurations for run in configuration.runs]
    # The results of baselines hold their buckets. The buckets of old results end at "500+".
    edges = max((run.protocol["bucket_edges"] for run in runs), key=len)
    baselines = baselines_of([run for run in runs if run.protocol["bucket_edges"] == edges])
    panels = {
        f"events before the target; seen items {in_words(filter_seen)}": {
            configuration.label: configuration.by_length(filter_seen, metric, edges)
            for configuration in configurations
        }
        | {name: summary["buckets"][filter_seen] for name, summary in baselines.items()}
        for filter_seen in filters
    }
    keys = [*(f"validation/{filter_seen}/{metric}" for filter_seen in filters), "train/loss"]
    records = [record for seeds in curves.values() for log in seeds for record in log]
    figures = {}
    if missing := [
        key for key in keys if not any({key, "epoch"} <= each.keys() for each in records)
    ]:
        print(f"no learning curves: no metrics.jsonl holds {missing[0]}", file=sys.stderr)
    else:
        figures["learning_curves.png"] = learning_curves(
            curves, keys, title=title, horizontal="epoch"
        )
    figures["by_length.png"] = metric_by_bucket(
        panels, metric, title=f"{title}; test", references=baselines
    )
    return figures


def plain(text: str) -> str:
    """A text that Matplotlib draws as it is: `$` begins no formula, a first `_` hides no label."""
    return re.sub("^_", " _", text).replace("$", r"\$")


def learning_curves(
    systems: Mapping[str, Sequence[Sequence[Record]]],
    metrics: Sequence[str],
    *,
    title: str,
    horizontal: str = "step",
) -> Figure:
    """One panel a metric, one line a system: the mean over its seeds, each seed a thin line.

    Args:
      systems: Name to the records of each seed (`metrics.jsonl`). A panel passes over the records
        without its metric.
      metrics: Keys of the records, a panel each.
      title: Above the panels.
      horizontal: The key of the horizontal axis.

    Raises:
      ValueError: If no record has a metric.
    """
    figure, panels = new_figure(len(metrics), title)
    for panel, metric in zip(panels, metrics, strict=True):
        for name, look in looks(list(systems)).items():
            seeds = systems[name]
            curves = [
                np.array(
                    [
                        (record[horizontal], record[metric])
                        for record in records
                        if metric in record and horizontal in record
                    ]
                ).reshape(-1, 2)
                for records in seeds
            ]
            # The n-th records together: a seed's epochs may be some steps longer than another's.
            shortest = min(map(len, curves))
            mean: np.ndarray = np.mean([curve[:shortest] for curve in curves], axis=0)
            if len(curves) > 1:
                for curve in curves:
                    panel.plot(*curve.T, color=look["color"], linewidth=0.6, alpha=0.5)
            if shortest > 50:
                look["marker"] = None
            panel.plot(*mean.T, label=plain(name), markersize=4, **look)
        if not any(line.get_xydata().size for line in panel.get_lines()):  # type: ignore[union-attr]
            raise ValueError(f"no record holds both {metric!r} and {horizontal!r}")
        panel.set_xlabel(horizontal)
        panel.set_ylabel(_metric_in_words(metric))
        dress(panel)
    shared_legend(figure, panels[0])
    return figure


def metric_by_bucket(
    panels: Mapping[str, Mapping[str, Sequence[Record]]],
    metric: str = "NDCG@10",
    *,
    title: str,
    references: Collection[str] = (),
) -> Figure:
    """A metric by a value of the target's history, such as its length; one line a system.

    Bars are one standard error over users. A bucket without targets has no point, and is not
    shown at either end. The numbers of targets stand below the buckets.

    Args:
      panels: What the buckets are of ("events before the target") to system name to bucket records
        (`metrics.bucket_metrics`). The systems of a panel have the same buckets.
      metric: A metric of the records.
      title: Above the panels.
      references: The systems that are drawn in grey: baselines, an oracle.

    Raises:
      ValueError: If there are no systems, their buckets differ, or no bucket has the metric.
    """
    figure, axes = new_figure(len(panels), title)
    for panel, (label, systems) in zip(axes, panels.items(), strict=True):
        _draw_buckets(panel, systems, metric, references)
        panel.set_xlabel(f"{label}\n(below each: targets)")
    axes[0].set_ylabel(f"{metric} (bars: one standard error)")
    shared_legend(figure, axes[0])
    return figure


def _draw_buckets(
    panel: Axes,
    systems: Mapping[str, Sequence[Record]],
    metric: str,
    references: Collection[str],
) -> None:
    layouts = {
        name: [(record["name"], record["targets"]) for record in records]
        for name, records in systems.items()
    }
    if not layouts or any(layout != next(iter(layouts.values())) for layout in layouts.values()):
        raise ValueError(f"the systems must share their buckets and targets, got {layouts}")
    if not any(metric in record["metrics"] for records in systems.values() for record in records):
        raise ValueError(f"no bucket holds {metric!r}")
    # A bucket's points stand side by side, at most .8 of the distance between buckets.
    step = min(0.06, 0.8 / len(systems))
    look = looks(list(systems), references)
    for index, (name, records) in enumerate(systems.items()):
        # A metric that is absent, or null in JSON, becomes NaN, which is not drawn.
        values, errors = (
            np.array([record[key].get(metric) for record in records], np.float64)
            for key in ("metrics", "standard_errors")
        )
        panel.errorbar(
            np.arange(len(records)) + step * (index - (len(systems) - 1) / 2),
            values,
            yerr=errors,
            label=plain(name),
            markersize=5,
            capsize=2,
            **look[name],
        )
    layout = next(iter(layouts.values()))
    # Long names, such as "1,000-1,999", would run into each other.
    broken = [name.replace("-", "-\n") if len(name) > 7 else name for name, _ in layout]
    ticks = [f"{plain(name)}\n{n:,}" for name, (_, n) in zip(broken, layout, strict=True)]
    panel.set_xticks(np.arange(len(layout)), ticks, fontsize="small")
    filled = [place for place, (_, targets) in enumerate(layout) if targets]
    panel.set_xlim(filled[0] - 0.6, filled[-1] + 0.6)
    panel.set_ylim(bottom=0)
    dress(panel)


def _metric_in_words(metric: str) -> str:
    """The key of a record as a label: "validation/none/NDCG@10" names its filter as tables do."""
    part, _, rest = metric.partition("/")
    filter_seen, _, name = rest.partition("/")
    if part == "validation" and name:
        return f"validation {name}\nseen items {in_words(filter_seen)}"
    return {"train/loss": "training loss"}.get(metric, metric)


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Writes a figure, makes its folder, and returns the path; the suffix gives the format."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=150)
    return path


def new_figure(panels: int, title: str) -> tuple[Figure, list[Axes]]:
    """A figure with panels side by side."""
    figure = Figure(figsize=(max(7.0, 4.5 * panels), 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(plain(title), fontsize="medium", wrap=True)
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def shared_legend(figure: Figure, panel: Axes) -> None:
    """Adds one legend below all panels, for panels of the same systems.

    Error bars leave no corner of a panel free, and long labels leave no room beside it. The figure
    grows by the legend's height.
    """
    handles, labels = panel.get_legend_handles_labels()
    width, height = figure.get_size_inches()
    # In inches at this font size: .6 for a handle with its gaps, .065 for a letter.
    columns = max(1, int(width / (0.6 + 0.065 * max(map(len, labels)))))
    rows = -(-len(labels) // columns)
    figure.set_size_inches(width, height + 0.17 * rows)
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize="small",
    )


def dress(panel: Axes) -> None:
    """Adds a grid to a panel, removes its frame at the top and right, and writes plain numbers."""
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
    for axis in (panel.xaxis, panel.yaxis):
        if axis.get_scale() == "log":
            axis.set_major_formatter(_PlainLogFormatter())
            axis.set_minor_formatter(_PlainLogFormatter(minor_thresholds=(1, 0.4)))
        elif isinstance(formatter := axis.get_major_formatter(), ScalarFormatter):
            formatter.set_scientific(False)
            formatter.set_useOffset(False)


class _PlainLogFormatter(LogFormatter):
    """Labels the ticks of a logarithmic axis that matplotlib would label, with plain numbers."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        if not super().__call__(x, pos):
            return ""
        whole, point, fraction = f"{x:,.9f}".partition(".")
        fraction = fraction.rstrip("0")
        return whole + (point + fraction if fraction else "")
