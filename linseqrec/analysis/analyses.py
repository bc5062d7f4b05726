"""The analyses by name: checkpoints in, numbers and a figure out."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from flax import nnx
from matplotlib.figure import Figure

from linseqrec.analysis import figures, gates, insertion_probe
from linseqrec.analysis.attention_rank import Spectrum, spectrum
from linseqrec.analysis.groups import item_groups, most_frequent_groups
from linseqrec.analysis.insertion_probe import ARMS, ProbeConfig, make_probes
from linseqrec.analysis.repeats import (
    AGE_EDGES,
    NEVER,
    SHARE_EDGES,
    share_of_repeats,
    transition_ages,
)
from linseqrec.analysis.state_sink import StateSink, state_sink
from linseqrec.analysis.subject import Subject
from linseqrec.analysis.traces import is_recurrent
from linseqrec.config import ConfigError
from linseqrec.data.card import differing_data
from linseqrec.evaluation import metrics
from linseqrec.evaluation.figures import metric_by_bucket
from linseqrec.evaluation.ranks import catalogue_ranks, in_words
from linseqrec.layers.gated_delta import GatedDelta
from linseqrec.layers.rela import RELA
from linseqrec.training.results import data_title
from linseqrec.training.run import SplitName

Analysis = tuple[dict[str, Any], Figure]

# Groups that a history's occupancy is measured of.
_FREQUENT_GROUPS = 3


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the analyses look at.

    Attributes:
      split: Whose targets: each history ends before its target.
      users: Histories looked into, at most.
      metric: What is drawn by bucket.
      probe: How the insertion probe's histories are made.

    Raises:
      MetricError: If there is no such metric.
    """

    split: SplitName = "validation"
    users: int = 512
    metric: str = "NDCG@10"
    probe: ProbeConfig = ProbeConfig()

    def __post_init__(self) -> None:
        metrics.check_metric(self.metric)


def analyse_state_sink(subjects: Sequence[Subject], settings: Settings) -> Analysis:
    """Occupancy lift of the most frequent groups, and effective rank, by mixer and pass."""
    groups, numbers = item_groups(subjects[0].run.source), {}
    for subject in subjects:
        rng = np.random.default_rng(0)
        readings: dict[str, list[StateSink]] = {}
        for events, traces in subject.traces(*subject.histories(settings.split, settings.users)):
            held = np.where(events.segment_ids > 0, groups[events.items], -1)
            frequent, others = most_frequent_groups(held, _FREQUENT_GROUPS, rng)
            for name, traced in traces.items():
                reading = state_sink(
                    np.asarray(traced.memory), np.asarray(traced.keys), frequent, others
                )
                readings.setdefault(name, []).append(reading)
        numbers[subject.name] = {
            name: StateSink.joined(parts).summary() for name, parts in readings.items()
        }
    return numbers, figures.state_sink_figure(
        numbers,
        title=f"State sink, {_FREQUENT_GROUPS} most frequent groups; {_title(subjects, settings)}",
    )


def analyse_gates(subjects: Sequence[Subject], settings: Settings) -> Analysis:
    """What the memories keep and write at an event, and what else gates them."""
    numbers = {}
    for subject in subjects:
        readings: dict[str, list[tuple[Any, np.ndarray]]] = {}
        for events, traces in subject.traces(*subject.histories(settings.split, settings.users)):
            for name, traced in traces.items():
                if traced.gates:
                    readings.setdefault(name, []).append((traced.gates, events.segment_ids > 0))
        numbers[subject.name] = {
            name: gates.summarise(batches) for name, batches in readings.items()
        }
    return numbers, figures.gates_figure(numbers, title=f"Gates; {_title(subjects, settings)}")


def analyse_insertion_probe(subjects: Sequence[Subject], settings: Settings) -> Analysis:
    """The rank of a rare event's item against the events inserted, repeated or random."""
    config, first = settings.probe, subjects[0]
    for subject in subjects:
        longest = subject.run.experiment.model.longest_row
        if longest is not None and config.length > longest:
            raise ConfigError(
                f"the probe's longest history has {config.length} events, and {subject.name} has "
                f"positions for {longest}: lower insertions or context"
            )
    probes = make_probes(
        first.run.source.dataset,
        *first.histories(settings.split, settings.users, at_least=config.context),
        item_groups(first.run.source),
        config,
        np.random.default_rng(0),
    )
    known = first.run.experiment.data.request_time == "known"
    numbers = {}
    for subject in subjects:
        table = subject.run.item_table(subject.params)

        def ranks(
            shown: bool, subject: Subject = subject, table: Any = table
        ) -> dict[str, np.ndarray]:
            found: dict[str, list[np.ndarray]] = {arm: [] for arm in ARMS}
            for arm, rows in found.items():
                for insertions in config.insertions:
                    events, slot = probes.events(
                        arm, insertions, config.length, shown=shown, request_times=known
                    )
                    hidden = subject.hidden(events, slot)
                    rows.append(catalogue_ranks(hidden, table, probes.target))
            return {arm: np.stack(rows) for arm, rows in found.items()}

        numbers[subject.name] = insertion_probe.summarise(
            ranks(True), ranks(False), config.insertions
        )
    return numbers, figures.insertion_probe_figure(
        numbers, title=f"Insertion probe; {_title(subjects, settings, config.context)}"
    )


def analyse_attention_rank(subjects: Sequence[Subject], settings: Settings) -> Analysis:
    """Singular values of RecGRELA's attention output, before and after its local branch."""
    numbers: dict[str, Any] = {}
    for subject in subjects:
        spectra: dict[str, dict[str, list[Spectrum]]] = {}
        for events, traces in subject.traces(*subject.histories(settings.split, settings.users)):
            for name, traced in traces.items():
                for key in ("attended", "augmented"):
                    output = getattr(traced, key)
                    if output is not None:
                        own = spectra.setdefault(name, {}).setdefault(key, [])
                        own.append(spectrum(output, events.segment_ids > 0))
        numbers[subject.name] = {
            name: {key: Spectrum.joined(parts).summary() for key, parts in outputs.items()}
            for name, outputs in spectra.items()
        }
    return numbers, figures.attention_rank_figure(
        numbers, title=f"Rank of the attention output; {_title(subjects, settings)}"
    )


def analyse_buckets(subjects: Sequence[Subject], settings: Settings) -> Analysis:
    """A metric by history length, by its share of repeats, by the age of the same transition."""
    numbers: dict[str, Any] = {}
    for subject in subjects:
        result = subject.run.evaluate(subject.params, settings.split)
        evaluator = subject.run.evaluator(settings.split)
        targets = subject.run.source.dataset, evaluator.users, evaluator.positions
        shares, ages = share_of_repeats(*targets), transition_ages(*targets)
        numbers[subject.name] = {
            name: {
                "length": result.buckets[name],
                "share_of_repeats": metrics.bucket_metrics(
                    ranks, shares, SHARE_EDGES, unit="share"
                ),
                "transition_age": metrics.bucket_metrics(ranks, ages, AGE_EDGES, without=NEVER),
            }
            for name, ranks in result.ranks.items()
        }
    first = subjects[0].run.experiment.evaluation.filter_seen[0]
    panels = {
        label: {name: buckets[first][key] for name, buckets in numbers.items()}
        for key, label in (
            ("length", "events before the target"),
            ("share_of_repeats", "share of repeats among them"),
            ("transition_age", "events since the same transition"),
        )
    }
    return numbers, metric_by_bucket(
        # Where nobody repeats, there is no age to draw.
        {
            label: systems
            for label, systems in panels.items()
            if any(
                bucket["targets"]
                for bucket in next(iter(systems.values()))
                if bucket["name"] != NEVER
            )
        },
        settings.metric,
        title=f"{_data_title(subjects)}; {settings.split}, seen items {in_words(first)}",
    )


ANALYSES: dict[str, Callable[[Sequence[Subject], Settings], Analysis]] = {
    "state_sink": analyse_state_sink,
    "gates": analyse_gates,
    "insertion_probe": analyse_insertion_probe,
    "attention_rank": analyse_attention_rank,
    "buckets": analyse_buckets,
}


def select(requested: Sequence[str]) -> dict[str, Callable[..., Analysis]]:
    """The analyses asked for by name; "all" among them is every one.

    Raises:
      ConfigError: A name that is no analysis, or no name.
    """
    unknown = [name for name in requested if name not in (*ANALYSES, "all")]
    if unknown or not requested:
        raise ConfigError(
            f"no analysis {', '.join(unknown) or 'asked for'}: there are {', '.join(ANALYSES)}"
        )
    if "all" in requested:
        return ANALYSES
    return {name: ANALYSES[name] for name in requested}


# What a mixer of the model must be for an analysis to apply, and its name; of the others any run.
# The rank is the paper's figure of its released form, which carries no state.
LOOKS_INTO: dict[str, tuple[str, Callable[[nnx.Module], bool]]] = {
    "state_sink": ("recurrent state", is_recurrent),
    "gates": ("gated delta memory", lambda mixer: isinstance(mixer, GatedDelta)),
    "insertion_probe": ("recurrent state", is_recurrent),
    "attention_rank": ("RELA attention", lambda mixer: isinstance(mixer, RELA)),
}


def applicable(name: str, subjects: Sequence[Subject]) -> list[Subject]:
    """Those that an analysis applies to: by their mixers, or all."""
    if name not in LOOKS_INTO:
        return list(subjects)
    _, applies = LOOKS_INTO[name]
    return [subject for subject in subjects if any(map(applies, subject.mixers))]


def check_comparable(subjects: Sequence[Subject]) -> None:
    """Checks that runs can be drawn together.

    Raises:
      ConfigError: If their data, their split or their protocol of evaluation differ.
    """
    first = subjects[0]
    for subject in subjects[1:]:
        card, other = (each.run.source.dataset.card for each in (subject, first))
        if differing := differing_data(card, other):
            raise ConfigError(
                f"{subject.name} is a run on other data than {first.name} "
                f"({', '.join(differing)} differ): analyse runs of one data set together"
            )
        for field, value in _protocol(subject).items():
            if value != (expected := _protocol(first)[field]):
                raise ConfigError(
                    f"{subject.name} and {first.name} are not evaluated alike, their {field} "
                    f"differs: {value} and {expected}; analyse runs of one protocol together"
                )


def _protocol(subject: Subject) -> dict[str, Any]:
    """What runs on the same data must have alike besides."""
    config = subject.run.experiment.evaluation
    return {
        "split": subject.run.source.split.description,
        "request_time": subject.run.experiment.data.request_time,
        "filter_seen": sorted(config.filter_seen),
        "ties": config.ties,
    }


def about(name: str, subjects: Sequence[Subject], settings: Settings) -> dict[str, Any]:
    """What numbers say nothing without, to be written with them: data, split, checkpoints, probe.

    Args:
      name: The analysis.
      subjects: The runs that were looked into.
      settings: How.

    Returns:
      JSON: "data", "split", "runs" (each one's step and the length it was trained on), "caveats";
      "histories", but for the buckets, which are of all; and how the insertion "probe" was made.
    """
    record: dict[str, Any] = {
        "data": _data_title(subjects),
        "split": settings.split,
        "runs": {
            subject.name: {
                "step": subject.step,
                "length": subject.run.batches.length,
            }
            for subject in subjects
        },
        "caveats": caveats(name, subjects, settings),
    }
    if name != "buckets":
        at_least = settings.probe.context if name == "insertion_probe" else 0
        record["histories"] = _count(subjects, settings, at_least)
    if name == "insertion_probe":
        record["probe"] = dataclasses.asdict(settings.probe) | {"length": settings.probe.length}
    return record


def caveats(name: str, subjects: Sequence[Subject], settings: Settings) -> list[str]:
    """What is to be known to read an analysis, one line each: of the lengths of its histories."""
    lengths = {subject.name: subject.run.batches.length for subject in subjects}
    if name == "insertion_probe":
        longest = settings.probe.length
        return [
            f"its histories have up to {longest} events, and {run} was trained on at most {length}"
            for run, length in lengths.items()
            if length < longest
        ]
    if name != "buckets" and len(set(lengths.values())) > 1:
        own = ", ".join(f"{run} {length}" for run, length in lengths.items())
        return [f"each run reads its own number of events at most: {own}"]
    return []


def _title(subjects: Sequence[Subject], settings: Settings, at_least: int = 0) -> str:
    count = _count(subjects, settings, at_least)
    return f"{_data_title(subjects)}; {settings.split}, {count} histories"


def _data_title(subjects: Sequence[Subject]) -> str:
    return data_title(*(subject.run for subject in subjects))


def _count(subjects: Sequence[Subject], settings: Settings, at_least: int = 0) -> int:
    return len(subjects[0].histories(settings.split, settings.users, at_least=at_least)[0])
