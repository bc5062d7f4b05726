"""Figures of a run: its learning curves, and a metric by what histories have, as their length.

Drawn on `Figure` objects, not through pyplot: nothing global, no display. The title is the
caller's, who knows what must be said of the data ("synthetic", "20 % of timestamps imputed").
"""

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito's palette, without its yellow: told apart with every common colour blindness.
# Markers and dashes say the same once more, for print in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":")
# What models are compared with.
REFERENCE = "#666666"

Record = Mapping[str, float]


def learning_curves(
    runs: Mapping[str, Iterable[Record]],
    metrics: Sequence[str],
    *,
    title: str,
    horizontal: str = "step",
    references: Mapping[str, Mapping[str, float]] | None = None,
) -> Figure:
    """One panel a metric, one line a run, from the records of `metrics.jsonl`.

    Args:
      runs: Name to records; a record without a metric is passed over in that metric's panel.
      metrics: Keys of the records, a panel each.
      title: Above the panels.
      horizontal: The key of the horizontal axis.
      references: Metric to (name to value), drawn as level lines: a floor, a published figure.

    Raises:
      ValueError: A metric that no record holds.
    """
    kept = {name: list(records) for name, records in runs.items()}
    figure, panels = new_figure(len(metrics), title)
    for panel, metric in zip(panels, metrics, strict=True):
        points = 0
        for index, (name, records) in enumerate(kept.items()):
            held = [record for record in records if metric in record and horizontal in record]
            points += len(held)
            panel.plot(
                [record[horizontal] for record in held],
                [record[metric] for record in held],
                label=name,
                color=COLOURS[index % len(COLOURS)],
                linestyle=DASHES[index % len(DASHES)],
                marker=MARKERS[index % len(MARKERS)] if len(held) <= 50 else None,
                markersize=4,
            )
        if not points:
            raise ValueError(f"no record holds both {metric!r} and {horizontal!r}")
        for index, (name, value) in enumerate((references or {}).get(metric, {}).items()):
            panel.axhline(
                value, color=REFERENCE, linestyle=DASHES[-1 - index % len(DASHES)], label=name
            )
        panel.set_xlabel(horizontal)
        panel.set_ylabel(metric)
        dress(panel)
        panel.legend(frameon=False, fontsize="small")
    return figure


def metric_by_bucket(
    panels: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]],
    metric: str = "NDCG@10",
    *,
    title: str,
    references: Collection[str] = (),
) -> Figure:
    """A metric by what the target's history has, such as its length; one line a system.

    Bars are one standard error over targets; a bucket without targets has no point. The numbers of
    targets stand below the buckets.

    Args:
      panels: What the buckets are of ("events before the target") to name to bucket records
        (`metrics.bucket_metrics`); those of a panel have the same buckets.
      metric: A metric of the records.
      title: Above the panels.
      references: Those of the systems that are drawn in grey: floors, an oracle.

    Raises:
      ValueError: No systems, systems whose buckets differ, or a metric that no bucket holds.
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
    systems: Mapping[str, Sequence[Mapping[str, Any]]],
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
    # Side by side, so that bars of close systems do not cover each other, nor a bucket the next.
    step = min(0.06, 0.8 / len(systems))
    for index, (name, records) in enumerate(systems.items()):
        shift = step * (index - (len(systems) - 1) / 2)
        panel.errorbar(
            np.arange(len(records)) + shift,
            # What is absent, and the null that JSON has for no number, is NaN: not drawn.
            np.array([record["metrics"].get(metric) for record in records], np.float64),
            yerr=np.array(
                [record["standard_errors"].get(metric) for record in records], np.float64
            ),
            label=name,
            color=REFERENCE if name in references else COLOURS[index % len(COLOURS)],
            linestyle=DASHES[index % len(DASHES)],
            marker=MARKERS[index % len(MARKERS)],
            markersize=5,
            capsize=2,
        )
    layout = next(iter(layouts.values()))
    panel.set_xticks(np.arange(len(layout)), [f"{name}\n{n:,}" for name, n in layout])
    panel.set_ylim(bottom=0)
    dress(panel)


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Writes the figure (its format is the path's suffix), making the folder; returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


def new_figure(panels: int, title: str) -> tuple[Figure, list[Axes]]:
    """A figure in the house's style, with panels side by side."""
    figure = Figure(figsize=(max(7.0, 4.5 * panels), 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize="medium", wrap=True)
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def shared_legend(figure: Figure, panel: Axes) -> None:
    """One legend for panels of the same lines, below them all.

    Error bars leave no corner of a panel free to rely on, and names as long as a swept
    configuration's would leave no room beside it. The figure grows by what the legend takes.
    """
    handles, labels = panel.get_legend_handles_labels()
    width, height = figure.get_size_inches()
    # In inches, at this font size: a handle with its gaps, and a letter.
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
    """Gives a panel its grid, and takes what frames it needlessly."""
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
