"""Figures of the analyses, from the numbers that go to JSON."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from linseqrec.analysis.gates import QUANTILES
from linseqrec.evaluation.figures import (
    COLOURS,
    DASHES,
    MARKERS,
    REFERENCE,
    dress,
    new_figure,
    shared_legend,
)

Record = Mapping[str, Any]


def state_sink_figure(subjects: Mapping[str, Record], *, title: str) -> Figure:
    """Occupancy lift and effective rank of each mixer, model beside model.

    Args:
      subjects: By model, by mixer, `StateSink.summary()`.
      title: Above the panels.
    """
    figure, (lifts, ranks) = new_figure(2, title)
    ticks: list[str] = []
    for index, (name, mixers) in enumerate(subjects.items()):
        slots = len(ticks) + np.arange(len(mixers))
        ticks += [*mixers, ""]
        style: dict[str, Any] = {
            "color": COLOURS[index % len(COLOURS)],
            "linestyle": "none",
            "capsize": 3,
        }
        marker = MARKERS[index % len(MARKERS)]
        for panel, key, label, filled in (
            (lifts, "occupancy_lift", f"{name}, most frequent groups", True),
            (lifts, "control_lift", f"{name}, other groups", False),
            (ranks, "effective_rank", name, True),
        ):
            panel.errorbar(
                slots,
                [mixer[key]["mean"] for mixer in mixers.values()],
                yerr=[mixer[key]["standard_error"] for mixer in mixers.values()],
                label=label,
                marker=marker,
                markerfacecolor=None if filled else "none",
                **style,
            )
    lifts.axhline(1, color=REFERENCE, linestyle=DASHES[-1])
    for panel, label in ((lifts, "occupancy lift (1: no excess)"), (ranks, "effective rank")):
        panel.set_xticks(np.arange(len(ticks)), ticks, rotation=45, ha="right", fontsize="small")
        panel.set_xlim(-0.6, len(ticks) - 1.4)
        panel.set_ylabel(f"{label}\nbars: one standard error")
        panel.set_ylim(bottom=0)
        dress(panel)
    shared_legend(figure, lifts)
    return figure


# What a panel of the gates shows.
_GATES = {
    "kept": "α, kept of the state",
    "written": "written of a value",
    "spike": "HyTRec's gate σ(W_s ..)",
    "coverage": "c, suppressed of a write",
    "removal": "λ, removed from a reading",
}


def gates_figure(subjects: Mapping[str, Record], *, title: str) -> Figure:
    """The gates of each mixer's heads: the median over events, and where most of them lie.

    Args:
      subjects: By model, by mixer, what `gates.summarise` returns.
      title: Above the panels.
    """
    held = {gate for mixers in subjects.values() for gates in mixers.values() for gate in gates}
    names = [name for name in _GATES if name in held]
    figure, panels = new_figure(len(names), title)
    ticks: list[str] = []
    for index, (subject, mixers) in enumerate(subjects.items()):
        for mixer, gates in mixers.items():
            for panel, name in zip(panels, names, strict=True):
                if name not in gates:
                    continue
                low, middle, high = (
                    np.array([head[quantile] for head in gates[name]["heads"]])
                    for quantile in QUANTILES
                )
                # A mixer's heads side by side, about its tick.
                panel.errorbar(
                    len(ticks) + np.linspace(-0.2, 0.2, len(middle)),
                    middle,
                    yerr=[middle - low, high - middle],
                    # Once a model.
                    label=subject if mixer == next(iter(mixers)) else None,
                    color=COLOURS[index % len(COLOURS)],
                    marker=MARKERS[index % len(MARKERS)],
                    linestyle="none",
                    capsize=3,
                )
            ticks.append(mixer)
        ticks.append("")
    for panel, name in zip(panels, names, strict=True):
        panel.set_xticks(np.arange(len(ticks)), ticks, rotation=45, ha="right", fontsize="small")
        panel.set_xlim(-0.6, len(ticks) - 1.4)
        # Shares all, but for what is written, which negative eigenvalues let reach twice the value.
        panel.set_ylim(0, None if name == "written" else 1.02)
        panel.set_ylabel(
            f"{_GATES[name]}\nmedian, {100 * QUANTILES['low']:.0f} to "
            f"{QUANTILES['high']:.0%} of events"
        )
        dress(panel)
    shared_legend(figure, panels[0])
    return figure


def insertion_probe_figure(subjects: Mapping[str, Record], *, title: str) -> Figure:
    """The rare item's rank by the events inserted, and what repetition adds to forgetting.

    Args:
      subjects: By model, what `insertion_probe.summarise` returns.
      title: Above the panels.
    """
    figure, (ranks, sink) = new_figure(2, title)
    insertions = next(iter(subjects.values()))["insertions"]
    slots = np.arange(len(insertions))
    for index, (name, result) in enumerate(subjects.items()):
        style: dict[str, Any] = {
            "color": COLOURS[index % len(COLOURS)],
            "marker": MARKERS[index % len(MARKERS)],
            "capsize": 2,
        }
        for (arm, values), dash, filled in zip(
            result["arms"].items(), ("-", "--"), (True, False), strict=True
        ):
            logs = np.array([entry["mean"] for entry in values["log2_rank"]])
            errors = np.array([entry["standard_error"] for entry in values["log2_rank"]])
            ranks.errorbar(
                slots,
                2**logs,
                yerr=[2**logs - 2 ** (logs - errors), 2 ** (logs + errors) - 2**logs],
                label=f"{name}, {arm}",
                linestyle=dash,
                markerfacecolor=None if filled else "none",
                **style,
            )
        for values, dash in zip(result["not_shown"].values(), (":", "-."), strict=True):
            ranks.plot(
                slots,
                [2 ** entry["mean"] for entry in values["log2_rank"]],
                color=style["color"],
                linestyle=dash,
                linewidth=0.8,
            )
        sink.plot(
            slots,
            [entry["mean"] for entry in result["sink_not_shown"]],
            color=style["color"],
            linestyle=":",
            linewidth=0.8,
        )
        sink.errorbar(
            # Side by side, so that bars of close models do not cover each other.
            slots + 0.06 * (index - (len(subjects) - 1) / 2),
            [entry["mean"] for entry in result["sink"]],
            yerr=[entry["standard_error"] for entry in result["sink"]],
            **style,
        )
    ranks.set_yscale("log")
    ranks.set_ylabel(
        "rank of the rare item (geometric mean)\nbars: one standard error\n"
        "thin: never shown (dotted: repeated)"
    )
    sink.axhline(0, color=REFERENCE, linestyle=":")
    sink.set_ylabel(
        "log2 rank, repeated - random\nbars: one standard error, paired\nthin: never shown"
    )
    for panel in (ranks, sink):
        panel.set_xticks(slots, [str(count) for count in insertions])
        panel.set_xlabel("events inserted after the rare item")
        dress(panel)
    shared_legend(figure, ranks)
    return figure


def attention_rank_figure(subjects: Mapping[str, Record], *, title: str) -> Figure:
    """Singular values of the attention output before and after the local branch, by block.

    Args:
      subjects: By model, by mixer, by "attended" and "augmented", `Spectrum.summary()`.
      title: Above the panels.
    """
    blocks = [
        (name if len(subjects) == 1 else f"{subject}, {name}", outputs)
        for subject, mixers in subjects.items()
        for name, outputs in mixers.items()
    ]
    figure, panels = new_figure(len(blocks), title)
    for panel, (name, outputs) in zip(panels, blocks, strict=True):
        for index, (key, label) in enumerate(
            (("attended", "linear attention"), ("augmented", "with the local branch"))
        ):
            if key not in outputs:
                continue
            values = outputs[key]["spectrum"]
            rank = outputs[key]["effective_rank"]["mean"]
            panel.plot(
                np.arange(1, len(values) + 1),
                values,
                label=f"{label}: effective rank {rank:.1f}",
                color=COLOURS[index],
                linestyle=DASHES[index],
            )
        panel.set_yscale("log")
        # Float32 outputs: what lies further below is rounding.
        panel.set_ylim(bottom=1e-7)
        panel.set_title(name, fontsize="small")
        panel.set_xlabel("index of the singular value")
        dress(panel)
        panel.legend(frameon=False, fontsize="x-small")
    panels[0].set_ylabel("share of the sum, mean over users")
    return figure
