"""The analyses by name: checkpoints in, numbers and a figure out."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from linseqrec.analysis import figures, gates, insertion_probe
from linseqrec.analysis.attention_rank import Spectrum, spectrum
from linseqrec.analysis.groups import item_groups, most_frequent_groups
from linseqrec.analysis.insertion_probe import ARMS, ProbeConfig, Probes, make_probes
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
from linseqrec.config_fields import ConfigError
from linseqrec.evaluation import metrics
from linseqrec.evaluation.ranks import catalogue_ranks, in_words
from linseqrec.layers.gated_delta import GatedDelta
from linseqrec.layers.rela import RELA
from linseqrec.runs.comparable import shared_title
from linseqrec.runs.configurations import configuration_labels
from linseqrec.runs.figures import metric_by_bucket
from linseqrec.training.run import SplitName

# Numbers by run, ready for JSON, and a figure.
Result = tuple[dict[str, Any], Figure]

# The groups of a history whose occupancy is measured.
_FREQUENT_GROUPS = 3
# Buckets of targets by the training events of their item; those of the first have none.
_POPULARITY_EDGES = (0, 1, 10, 100, 1_000)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the analyses look at.

    Attributes:
      split: The targets; each history ends before its target.
      users: The greatest number of histories.
      metric: The metric that is drawn by bucket.
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


def analyse_state_sink(subjects: Sequence[Subject], settings: Settings) -> Result:
    """Occupancy lift of the most frequent groups, and effective rank, by mixer and pass."""
    groups, numbers = item_groups(subjects[0].run.source), {}
    for subject in subjects:
        rng = np.random.default_rng(0)
        by_mixer: dict[str, list[StateSink]] = {}
        for events, traces in subject.traces(*subject.histories(settings.split, settings.users)):
            real = events.segment_ids > 0
            event_groups = np.where(real, groups[events.items], -1)
            by_event = most_frequent_groups(event_groups, _FREQUENT_GROUPS, rng)
            for name, traced in traces.items():
                frequent, others = (
                    real[:, None] & traced.of_written(members, False) for members in by_event
                )
                measured = state_sink(
                    np.asarray(traced.memory), np.asarray(traced.keys), frequent, others
                )
                by_mixer.setdefault(name, []).append(measured)
        numbers[subject.name] = {
            name: StateSink.joined(parts).summary() for name, parts in by_mixer.items()
        }
    title = f"State sink, {_FREQUENT_GROUPS} most frequent groups; {_title(subjects, settings)}"
    return numbers, figures.state_sink_figure(numbers, _systems(subjects), title)


def analyse_gates(subjects: Sequence[Subject], settings: Settings) -> Result:
    """How much the memories keep and write at an event, and their other gates."""
    numbers = {}
    for subject in subjects:
        by_mixer: dict[str, list[tuple[Any, np.ndarray]]] = {}
        for events, traces in subject.traces(*subject.histories(settings.split, settings.users)):
            for name, traced in traces.items():
                if traced.gates:
                    real = events.segment_ids > 0
                    written = real & traced.of_written(real, False)
                    by_mixer.setdefault(name, []).append((traced.gates, written))
        numbers[subject.name] = {
            name: gates.summarise(batches) for name, batches in by_mixer.items()
        }
    title = f"Gates; {_title(subjects, settings)}"
    return numbers, figures.gates_figure(numbers, _systems(subjects), title)


def analyse_insertion_probe(subjects: Sequence[Subject], settings: Settings) -> Result:
    """The rank of a rare event's item by the events inserted, repeated or random.

    Raises:
      ConfigError: If a model cannot read the longest history, or no history is long enough.
    """
    config, first = settings.probe, subjects[0]
    for subject in subjects:
        longest = _probe_length(subject, config)
        if config.length > longest:
            raise ConfigError(
                f"the probe's longest history has {config.length} events, and {subject.name} reads "
                f"rows of {longest}: lower insertions or context"
            )
    probes = make_probes(
        first.run.source.dataset,
        *first.histories(settings.split, settings.users, at_least=config.context),
        item_groups(first.run.source),
        config,
        np.random.default_rng(0),
    )
    numbers = {}
    for subject in subjects:
        table = subject.run.model.item_table(subject.variables)
        ranks, unseen = (
            {arm: _probe_ranks(subject, table, probes, config, arm, shown) for arm in ARMS}
            for shown in (True, False)
        )
        numbers[subject.name] = insertion_probe.summarise(ranks, unseen, config.insertions)
    title = f"Insertion probe; {_title(subjects, settings, config.context)}"
    return numbers, figures.insertion_probe_figure(numbers, _systems(subjects), title)


def _probe_length(subject: Subject, config: ProbeConfig) -> int:
    """The slots of the rows in which a model reads probes."""
    model = subject.run.experiment.model
    if not model.causal:  # It may read padding: its rows are as wide as in training.
        return subject.run.batches.length
    return min(config.length, model.longest_row or config.length)


def _probe_ranks(
    subject: Subject,
    table: Float[Array, "N1 D"],
    probes: Probes,
    config: ProbeConfig,
    arm: str,
    shown: bool,
) -> np.ndarray:
    """The ranks of the rare item by insertions and user, [R, U]."""
    known = subject.run.experiment.data.request_time == "known"
    length, rows = _probe_length(subject, config), []
    for insertions in config.insertions:
        events, slot = probes.events(arm, insertions, length, shown=shown, request_times=known)
        rows.append(catalogue_ranks(subject.hidden(events, slot), table, probes.target))
    return np.stack(rows)


def analyse_attention_rank(subjects: Sequence[Subject], settings: Settings) -> Result:
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
    title = f"Rank of the attention output; {_title(subjects, settings)}"
    return numbers, figures.attention_rank_figure(numbers, _systems(subjects), title)


def analyse_buckets(subjects: Sequence[Subject], settings: Settings) -> Result:
    """A metric by history length, share of repeats, age of the same transition, and popularity."""
    first, split, metric = subjects[0].run, settings.split, settings.metric
    evaluator = first.evaluator(split)
    targets = first.source.dataset, evaluator.users, evaluator.positions
    shares, ages = share_of_repeats(*targets), transition_ages(*targets)
    buckets = {
        "length": metrics.make_buckets(evaluator.lengths, metrics.length_edges(evaluator.lengths)),
        "share_of_repeats": metrics.make_buckets(shares, SHARE_EDGES, unit="share"),
        "transition_age": metrics.make_buckets(ages, AGE_EDGES, without=NEVER),
        "popularity": metrics.make_buckets(first.item_counts[evaluator.targets], _POPULARITY_EDGES),
    }
    labels = {
        "length": "events before the target",
        "share_of_repeats": "share of repeats among them",
        "transition_age": "events since the same transition",
        "popularity": "training events of the target's item",
    }
    # Where no user repeats an item, there is no age to draw.
    if not any(bucket.inside.any() for bucket in buckets["transition_age"][:-1]):
        del labels["transition_age"]
    filter_seen, systems = first.experiment.evaluation.filter_seen[0], _systems(subjects)
    numbers: dict[str, Any] = {}
    seeds: dict[str, list[np.ndarray]] = {}
    for subject in subjects:
        ranks = subject.run.evaluate(subject.variables, split).ranks
        gains = {name: metrics.per_target(own) for name, own in ranks.items()}
        numbers[subject.name] = {
            name: {
                key: [bucket.record(own, evaluator.users) for bucket in buckets[key]]
                for key in buckets
            }
            for name, own in gains.items()
        }
        seeds.setdefault(systems[subject.name], []).append(gains[filter_seen][metric])
    means = {system: {metric: np.mean(own, axis=0)} for system, own in seeds.items()}
    title = f"{_data_title(subjects)}; {split}, seen items {in_words(filter_seen)}"
    if len(means) < len(subjects):
        title += "; means over seeds"
    panels = {
        label: {
            system: [bucket.record(mean, evaluator.users) for bucket in buckets[key]]
            for system, mean in means.items()
        }
        for key, label in labels.items()
    }
    return numbers, metric_by_bucket(panels, metric, title=title)


@dataclasses.dataclass(frozen=True)
class Analysis:
    """An analysis, and the models that it applies to.

    Attributes:
      run: The function that analyses subjects.
      needs: What a model must have; empty: the analysis applies to any model.
      finds: Whether a mixer of the model is what `needs` says.
    """

    run: Callable[[Sequence[Subject], Settings], Result]
    needs: str = ""
    finds: Callable[[nnx.Module], bool] = lambda mixer: True

    def applicable(self, subjects: Sequence[Subject]) -> list[Subject]:
        """The subjects that the analysis applies to."""
        if not self.needs:
            return list(subjects)
        return [subject for subject in subjects if any(map(self.finds, subject.mixers))]


# The rank is the paper's figure of its released form, which carries no state.
ANALYSES = {
    "state_sink": Analysis(analyse_state_sink, "recurrent state", is_recurrent),
    "gates": Analysis(
        analyse_gates, "gated delta memory", lambda mixer: isinstance(mixer, GatedDelta)
    ),
    "insertion_probe": Analysis(analyse_insertion_probe),
    "attention_rank": Analysis(
        analyse_attention_rank, "RELA attention", lambda mixer: isinstance(mixer, RELA)
    ),
    "buckets": Analysis(analyse_buckets),
}


def select(names: Sequence[str]) -> dict[str, Analysis]:
    """The analyses by their names; "all" among the names selects every one.

    Raises:
      ConfigError: If a name is no analysis, or there is no name.
    """
    unknown = [name for name in names if name not in (*ANALYSES, "all")]
    if unknown or not names:
        raise ConfigError(
            f"no analysis {', '.join(unknown) or 'asked for'}: there are {', '.join(ANALYSES)}"
        )
    return ANALYSES if "all" in names else {name: ANALYSES[name] for name in names}


def about(name: str, subjects: Sequence[Subject], settings: Settings) -> dict[str, Any]:
    """What a reader of an analysis's numbers must know.

    Args:
      name: The analysis.
      subjects: The runs that were analysed.
      settings: How.

    Returns:
      JSON: "data", "split", "runs" (the step of each, and the length it was trained on) and
      "caveats". "histories", except for the buckets, which are of all. "probe": how the insertion
      probe was made.
    """
    record: dict[str, Any] = {
        "data": _data_title(subjects),
        "split": settings.split,
        "runs": {
            subject.name: {"step": subject.step, "length": subject.run.batches.length}
            for subject in subjects
        },
        "caveats": caveats(name, subjects, settings),
    }
    if name != "buckets":
        at_least = settings.probe.context if name == "insertion_probe" else 0
        record["histories"] = _num_histories(subjects, settings, at_least)
    if name == "insertion_probe":
        record["probe"] = dataclasses.asdict(settings.probe) | {"length": settings.probe.length}
    return record


def caveats(name: str, subjects: Sequence[Subject], settings: Settings) -> list[str]:
    """Remarks on the lengths of the histories that an analysis reads, a line each."""
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


def _systems(subjects: Sequence[Subject]) -> dict[str, str]:
    """Run name to the label of its configuration: the seeds of one configuration share it.

    The label is the run's name where the configuration has no other seed.
    """
    labels = configuration_labels([subject.run.experiment for subject in subjects])
    return {
        subject.name: label if labels.count(label) > 1 else subject.name
        for subject, label in zip(subjects, labels, strict=True)
    }


def _title(subjects: Sequence[Subject], settings: Settings, at_least: int = 0) -> str:
    count = _num_histories(subjects, settings, at_least)
    title = f"{_data_title(subjects)}; {settings.split}, {count} histories"
    several = len(set(_systems(subjects).values())) < len(subjects)
    return f"{title}; seeds share a colour" if several else title


def _data_title(subjects: Sequence[Subject]) -> str:
    runs = [subject.run for subject in subjects]
    return shared_title([run.experiment for run in runs], runs[0].source.split.name)


def _num_histories(subjects: Sequence[Subject], settings: Settings, at_least: int = 0) -> int:
    return len(subjects[0].histories(settings.split, settings.users, at_least=at_least)[0])
