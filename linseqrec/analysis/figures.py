"""Figures of the analyses, from the numbers that go to JSON.

A system is a configuration: its seeds have one colour, one marker and one entry in the legend.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from linseqrec.analysis.gates import QUANTILES
from linseqrec.runs.figures import (
    DASHES,
    REFERENCE,
    dress,
    looks,
    new_figure,
    shared_legend,
)

Record = Mapping[str, Any]

# The panels of the gates, with what they show.
_GATES = {
    "kept": "α, kept of the state",
    "written": "written of a value",
    "spike": "HyTRec's gate σ(W_s ..)",
    "coverage": "c, suppressed of a write",
    "removal": "λ, removed from a reading",
}


def state_sink_figure(runs: Mapping[str, Record], systems: Mapping[str, str], title: str) -> Figure:
    """Occupancy lift and effective rank of each mixer.

    Args:
      runs: Run to mixer to `StateSink.summary()`.
      systems: Run to the label of its configuration.
      title: Above the panels.
    """
    figure, (lifts, ranks) = new_figure(2, title)
    mixers = _names(runs.values())
    for run, label, look, place in _drawn(runs, systems):
        places = [mixers.index(mixer) + _spacing(runs) * place for mixer in runs[run]]
        for panel, key, suffix, filled in (
            (lifts, "occupancy_lift", ", most frequent groups", True),
            (lifts, "control_lift", ", other groups", False),
            (ranks, "effective_rank", "", True),
        ):
            panel.errorbar(
                places,
                [mixer[key]["mean"] for mixer in runs[run].values()],
                yerr=[mixer[key]["standard_error"] for mixer in runs[run].values()],
                label=label and label + suffix,
                markerfacecolor=None if filled else "none",
                linestyle="none",
                capsize=3,
                **look,
            )
    lifts.axhline(1, color=REFERENCE, linestyle=DASHES[-1])
    for panel, name in ((lifts, "occupancy lift (1: no excess)"), (ranks, "effective rank")):
        panel.set_ylabel(f"{name}\nbars: one standard error")
        panel.set_ylim(bottom=0)
        _name_mixers(panel, mixers)
    shared_legend(figure, lifts)
    return figure


def gates_figure(runs: Mapping[str, Record], systems: Mapping[str, str], title: str) -> Figure:
    """The gates of each mixer's heads: the median over events, with a low and a high quantile.

    Args:
      runs: Run to mixer to what `gates.summarise` returns.
      systems: Run to the label of its configuration.
      title: Above the panels.
    """
    present = _names(gates for mixers in runs.values() for gates in mixers.values())
    names = [name for name in _GATES if name in present]
    figure, panels = new_figure(len(names), title)
    mixers = _names(runs.values())
    for panel, name in zip(panels, names, strict=True):
        for run, label, look, place in _drawn(runs, systems):
            own = {mixer: gates[name] for mixer, gates in runs[run].items() if name in gates}
            for mixer, gate in own.items():
                low, middle, high = (
                    np.array([head[quantile] for head in gate["heads"]]) for quantile in QUANTILES
                )
                # A mixer's heads stand side by side.
                heads = np.linspace(-0.35, 0.35, len(middle)) if len(middle) > 1 else 0
                panel.errorbar(
                    mixers.index(mixer) + _spacing(runs) * (place + heads),
                    middle,
                    yerr=[middle - low, high - middle],
                    label=label if mixer == next(iter(own)) else None,
                    linestyle="none",
                    capsize=3,
                    **look,
                )
        # Gates are shares. With negative eigenvalues, up to twice a value is written.
        panel.set_ylim(0, None if name == "written" else 1.02)
        panel.set_ylabel(
            f"{_GATES[name]}\nmedian, {100 * QUANTILES['low']:.0f} to "
            f"{QUANTILES['high']:.0%} of events"
        )
        _name_mixers(panel, mixers)
    shared_legend(figure, panels[0])
    return figure


def insertion_probe_figure(
    runs: Mapping[str, Record], systems: Mapping[str, str], title: str
) -> Figure:
    """The rare item's rank by the events inserted, and what repetition adds to forgetting.

    Args:
      runs: Run to what `insertion_probe.summarise` returns.
      systems: Run to the label of its configuration.
      title: Above the panels.
    """
    figure, (ranks, sink) = new_figure(2, title)
    insertions = next(iter(runs.values()))["insertions"]
    slots = np.arange(len(insertions))
    for run, label, look, place in _drawn(runs, systems):
        result, thin = runs[run], {"color": look["color"], "linewidth": 0.8}
        for (arm, values), dash, filled in zip(
            result["arms"].items(), ("-", "--"), (True, False), strict=True
        ):
            logs, errors = _means_and_errors(values["log2_rank"])
            ranks.errorbar(
                slots,
                2**logs,
                yerr=[2**logs - 2 ** (logs - errors), 2 ** (logs + errors) - 2**logs],
                label=label and f"{label}, {arm}",
                linestyle=dash,
                markerfacecolor=None if filled else "none",
                capsize=2,
                **look,
            )
        for values, dash in zip(result["not_shown"].values(), (":", "-."), strict=True):
            ranks.plot(slots, 2 ** _means_and_errors(values["log2_rank"])[0], dash, **thin)
        sink.plot(slots, _means_and_errors(result["sink_not_shown"])[0], ":", **thin)
        means, errors = _means_and_errors(result["sink"])
        # Side by side, so that the bars of close runs do not cover each other.
        sink.errorbar(slots + 0.06 * place, means, yerr=errors, capsize=2, **look)
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


def attention_rank_figure(
    runs: Mapping[str, Record], systems: Mapping[str, str], title: str
) -> Figure:
    """Singular values of the attention output before and after the local branch, a panel a mixer.

    Args:
      runs: Run to mixer to "attended" and "augmented", `Spectrum.summary()`.
      systems: Run to the label of its configuration.
      title: Above the panels.
    """
    mixers = _names(runs.values())
    figure, panels = new_figure(len(mixers), title)
    outputs = {"attended": "linear attention", "augmented": "with the local branch"}
    for panel, mixer in zip(panels, mixers, strict=True):
        for run, label, look, _ in _drawn(runs, systems):
            own = runs[run].get(mixer, {})
            for index, key in enumerate(outputs):
                if key not in own:
                    continue
                seeds = [other for other in runs if systems[other] == systems[run]]
                rank = np.mean([runs[seed][mixer][key]["effective_rank"]["mean"] for seed in seeds])
                name = "" if len(set(systems.values())) == 1 else f"{label}, "
                panel.plot(
                    np.arange(1, len(own[key]["spectrum"]) + 1),
                    own[key]["spectrum"],
                    label=label and f"{name}{outputs[key]}: effective rank {rank:.1f}",
                    color=look["color"],
                    linestyle=DASHES[index],
                )
        panel.set_yscale("log")
        # The outputs are float32: smaller values are rounding.
        panel.set_ylim(bottom=1e-7)
        panel.set_title(mixer, fontsize="small")
        panel.set_xlabel("index of the singular value")
        dress(panel)
        panel.legend(frameon=False, fontsize="x-small")
    panels[0].set_ylabel("share of the sum, mean over users")
    return figure


def _drawn(
    runs: Mapping[str, Record], systems: Mapping[str, str]
) -> Iterator[tuple[str, str | None, dict[str, Any], float]]:
    """Each run with its entry in the legend, its style and its place beside the other runs.

    The seeds of a configuration follow each other; the entry is None for all but the first. Places
    are whole steps apart, around 0.
    """
    order = list(dict.fromkeys(systems[run] for run in runs))
    previous, all_looks = None, looks(order)
    for index, run in enumerate(sorted(runs, key=lambda run: order.index(systems[run]))):
        system = systems[run]
        label = None if system == previous else system
        previous = system
        look = {key: all_looks[system][key] for key in ("color", "marker")}
        yield run, label, look, index - (len(runs) - 1) / 2


def _spacing(runs: Mapping[str, Record]) -> float:
    """The distance between runs at a mixer; mixers are 1 apart."""
    return min(0.15, 0.8 / len(runs))


def _names(records: Any) -> list[str]:
    """The keys of several records, each once, in the order of their first occurrence."""
    return list(dict.fromkeys(name for record in records for name in record))


def _name_mixers(panel: Axes, mixers: Sequence[str]) -> None:
    """Names each mixer once, below the runs' points."""
    panel.set_xticks(np.arange(len(mixers)), mixers, rotation=45, ha="right", fontsize="small")
    panel.set_xlim(-0.6, len(mixers) - 0.4)
    dress(panel)


def _means_and_errors(entries: Sequence[Record]) -> tuple[np.ndarray, np.ndarray]:
    """The columns of `summarise_users`' results."""
    return (
        np.array([entry["mean"] for entry in entries], np.float64),
        np.array([entry["standard_error"] for entry in entries], np.float64),
    )
