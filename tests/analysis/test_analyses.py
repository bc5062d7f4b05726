"""Which runs can be looked into together, and what is asked of them."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from linseqrec.analysis import analyses
from linseqrec.analysis.groups import item_groups, most_frequent_groups
from linseqrec.analysis.insertion_probe import ProbeConfig, make_probes
from linseqrec.analysis.state_sink import state_sink
from linseqrec.analysis.subject import Subject
from linseqrec.analysis.traces import trace
from linseqrec.config import Experiment
from linseqrec.config_fields import ConfigError
from linseqrec.data.dataset import Dataset
from linseqrec.data.histories import gather_histories
from linseqrec.data.source import DataConfig, Source
from linseqrec.data.splits import global_temporal, leave_one_out
from linseqrec.errors import RunsError
from linseqrec.evaluation.metrics import MetricError
from linseqrec.models.gated_deltanet import GatedDeltaNetConfig
from linseqrec.models.hytrec import HyTRecConfig
from linseqrec.models.recgrela import RecGRELAConfig
from linseqrec.runs.comparable import Conditions, check_comparable
from linseqrec.training.run import Run

EXPERIMENT = Experiment(
    model=RecGRELAConfig(width=16, heads=2, num_layers=1), data=DataConfig(length=8, batch_size=4)
)
ITEMS = np.random.default_rng(0).integers(1, 10, 60).astype(np.int32)
TIMES = np.sort(np.random.default_rng(1).integers(0, 10_000, 60))
LOG = Dataset.from_arrays(ITEMS, np.tile(TIMES[:10], 6), np.arange(0, 61, 10), 9)


def subject(name, dataset=LOG, split=leave_one_out, experiment=EXPERIMENT, **parts):
    """A subject of fresh parameters: subject("a", evaluation={"ties": "pessimistic"})."""
    changes = {
        part: dataclasses.replace(getattr(experiment, part), **fields)
        for part, fields in parts.items()
    }
    source = Source(dataset, split(dataset), None)
    run = Run.of(dataclasses.replace(experiment, **changes), source)
    return Subject(name, run, nnx.merge_state(*run.model.fresh()), 0)


def check(*subjects):
    check_comparable({subject.name: Conditions.of_run(subject.run) for subject in subjects})


def test_runs_that_were_not_evaluated_alike_are_refused():
    first = subject("first", evaluation={"filter_seen": ("none", "all")})
    alike = subject(
        "alike",
        evaluation={"filter_seen": ("all", "none")},
        model={"width": 32},
        data={"length": 4},
    )
    check(first, alike)
    both = {"filter_seen": ("none", "all")}
    timed = Dataset.from_arrays(ITEMS, LOG.timestamps + 1, LOG.offsets, 9)
    by_time = lambda dataset: global_temporal(dataset, 0.6, 0.8)  # noqa: E731
    for other, message in (
        (subject("x", timed, evaluation=both), r"first and x .* data \(timestamps differ"),
        (subject("x", split=by_time, evaluation=both), r"in their split\n(\n|.)*temporal.*: x"),
        (subject("x"), r'of seen items\n  \["all", "none"\]: first, alike\n  \["none"\]: x'),
        (subject("x", evaluation=both | {"ties": "pessimistic"}), "in their ties"),
    ):
        with pytest.raises(RunsError, match=message):
            check(first, alike, other)


def test_what_is_asked_for_is_there():
    assert list(analyses.select(["buckets", "state_sink"])) == ["buckets", "state_sink"]
    assert analyses.select(["all"]) == analyses.ANALYSES
    assert analyses.select(["buckets", "all"]) == analyses.ANALYSES
    with pytest.raises(ConfigError, match="no analysis bucket: there are state_sink, "):
        analyses.select(["buckets", "bucket"])
    with pytest.raises(ConfigError, match="no analysis asked for: there are state_sink, "):
        analyses.select([])
    with pytest.raises(MetricError, match="no metric 'foo'; there are HR@1, "):
        analyses.Settings(metric="foo")


def test_the_released_recgrela_has_a_rank_and_no_state():
    released = subject("released", model={"causal": False}, data={"plan": "prefixes"})
    causal = subject("causal")
    both = [released, causal]
    assert analyses.ANALYSES["attention_rank"].applicable(both) == both
    assert analyses.ANALYSES["buckets"].applicable(both) == both
    assert analyses.ANALYSES["insertion_probe"].applicable(both) == both
    assert analyses.ANALYSES["state_sink"].applicable(both) == [causal]
    numbers, figure = analyses.analyse_attention_rank(both, analyses.Settings(users=4))
    (panel,) = figure.axes
    assert panel.get_title() == "blocks/0"
    lines = iter(panel.get_lines())
    for name in ("released", "causal"):
        block = numbers[name]["blocks/0"]
        assert {output["effective_rank"]["users"] for output in block.values()} == {4}
        assert set(block) == {"attended", "augmented"}
        labels = {"attended": "linear attention", "augmented": "with the local branch"}
        for key, label in labels.items():
            line, mean = next(lines), block[key]["effective_rank"]["mean"]
            assert line.get_label() == f"{name}, {label}: effective rank {mean:.1f}"
            np.testing.assert_array_equal(line.get_ydata(), block[key]["spectrum"])


def test_seeds_are_one_system_and_a_mixer_is_named_once():
    delta = GatedDeltaNetConfig(width=8, heads=2, num_layers=2, key_width=8, value_width=8)
    gated = dataclasses.replace(EXPERIMENT, name="gated", model=delta)
    seeds = [subject(f"{seed}", experiment=gated, training={"seed": seed}) for seed in (0, 1)]
    subjects = [seeds[0], subject("other"), seeds[1]]
    settings = analyses.Settings(users=4)
    numbers, figure = analyses.analyse_state_sink(subjects, settings)
    assert list(numbers) == ["0", "other", "1"]
    assert figure.get_suptitle().endswith("seeds share a colour")
    for panel in figure.axes:
        ticks = [label.get_text() for label in panel.get_xticklabels()]
        assert ticks == ["blocks/0", "blocks/1"]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert [entry.partition(",")[0] for entry in legend] == ["gated", "gated", "other", "other"]
    drawn = figure.axes[1].containers
    colours = [container.lines[0].get_color() for container in drawn]
    assert colours[0] == colours[1] != colours[2]
    places = [container.lines[0].get_xdata()[0] for container in drawn]
    assert len(set(places)) == 3
    _, figure = analyses.analyse_gates(seeds, settings)
    for panel in figure.axes:
        assert [label.get_text() for label in panel.get_xticklabels()] == ["blocks/0", "blocks/1"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["gated"]


def test_gates_of_a_late_memory_are_those_of_the_events_that_it_has_written():
    """A memory eight events late has written none of a history of eight."""
    model = HyTRecConfig(width=8, heads=2, num_layers=1, ratio="1:0", short_layers=1)
    users = {}
    for delay in (1, 8):
        late = dataclasses.replace(model, short_events=delay)
        experiment = dataclasses.replace(EXPERIMENT, name="late", model=late)
        numbers, _ = analyses.analyse_gates(
            [subject("late", experiment=experiment)], analyses.Settings(users=4)
        )
        users[delay] = numbers["late"]["long/0"]["written"]["users"]
    assert users == {1: 4, 8: 0}


def test_buckets_are_drawn_of_the_mean_over_seeds():
    seeds = [subject(f"{seed}", training={"seed": seed}) for seed in (0, 1)]
    numbers, figure = analyses.analyse_buckets(seeds, analyses.Settings(metric="MRR@10"))
    assert list(numbers) == ["0", "1"]
    assert figure.get_suptitle().endswith("; means over seeds")
    (container,) = figure.axes[0].containers
    means = [numbers[seed]["none"]["length"][0]["metrics"]["MRR@10"] for seed in ("0", "1")]
    drawn = container.lines[0].get_ydata(orig=False)[0]
    assert drawn == pytest.approx(np.mean(means)) and means[0] != means[1]


def test_histories_are_thinned_evenly_among_those_long_enough():
    lengths = np.array([10, 4, 10, 9, 10, 5, 10, 10])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = np.resize(ITEMS, offsets[-1])
    log = Dataset.from_arrays(items, np.arange(len(items)), offsets, 9)
    users, positions = subject("x", log).histories("test", 3, at_least=8)
    # Of users 0, 2, 3, 4, 6 and 7 the first, one in the middle and the last.
    np.testing.assert_array_equal(users, [0, 3, 7])
    np.testing.assert_array_equal(positions, offsets[users + 1] - 1)
    assert len(subject("x", log).histories("test", 99, at_least=9)[0]) == 5


def test_a_user_with_several_targets_has_one_history():
    def split(dataset):
        return global_temporal(dataset, 0.5, 0.7, "all")

    several = subject("x", split=split)
    targets = several.run.source.split.test
    users, positions = several.histories("test", 99)
    assert len(targets) > len(users) and users.tolist() == sorted(set(targets.users.tolist()))
    for user, position in zip(users, positions, strict=True):
        assert position == targets.positions[targets.users == user].max()


def test_a_title_says_whose_histories_and_what_any_of_the_runs_must_say():
    first = subject("first")
    noted = dataclasses.replace(EXPERIMENT, note="20 % of the timestamps are imputed")
    both = [first, subject("timed", experiment=noted)]
    _, figure = analyses.analyse_attention_rank(both, analyses.Settings(users=4))
    title = figure.get_suptitle()
    assert "validation, 4 histories" in title and title.count("imputed") == 1
    about = analyses.about("insertion_probe", both, analyses.Settings(users=4))
    assert about["runs"] == {name: {"step": 0, "length": 8} for name in ("first", "timed")}
    assert about["probe"]["length"] == 64 + 8 + 256
    assert (about["histories"], about["caveats"][1]) == (
        0,
        "its histories have up to 328 events, and timed was trained on at most 8",
    )


def test_runs_that_read_different_lengths_say_so():
    both = [subject("short"), subject("long", data={"length": 12})]
    settings = analyses.Settings(probe=dataclasses.replace(PROBE, context=4))
    for name in ("state_sink", "gates", "attention_rank"):
        (caveat,) = analyses.caveats(name, both, settings)
        assert caveat.endswith("at most: short 8, long 12")
        assert not analyses.caveats(name, both[:1] * 2, settings)
    assert not analyses.caveats("buckets", both, settings)
    assert not analyses.caveats("insertion_probe", both, settings)


PROBE = ProbeConfig(insertions=(0, 2), context=6, shown=2, pattern=2)


def test_the_probe_ranks_the_rare_item_after_each_history():
    """By ranks of the last hidden vector of each history alone; two batches, the last filled up."""
    delta = GatedDeltaNetConfig(width=8, heads=1, num_layers=1, key_width=8, value_width=8)
    rng = np.random.default_rng(2)
    items = rng.integers(1, 90, 400).astype(np.int32)
    # And a user whose history is too short, who does not count.
    offsets = [*range(0, 401, 10), 405]
    items = np.append(items, items[:5])
    log = Dataset.from_arrays(items, np.arange(405), np.array(offsets), num_items=90)
    gated = subject("gated", log, experiment=dataclasses.replace(EXPERIMENT, model=delta))
    settings = analyses.Settings(probe=PROBE)
    numbers, figure = analyses.analyse_insertion_probe([gated], settings)
    got = numbers["gated"]
    assert (got["insertions"], got["users"]) == ([0, 2], 40)
    table = np.asarray(gated.run.model.item_table(gated.variables), np.float64)
    probes = make_probes(
        log,
        *gated.histories("validation", 512),
        item_groups(gated.run.source),
        PROBE,
        np.random.default_rng(0),
    )

    def median_rank(arm, count, shown=True):
        ranks = []
        for row in range(40):
            events, slot = probes.events(arm, count, PROBE.length, shown=shown)
            own = row, slice(0, slot + 1)
            one = jax.tree.map(lambda leaf, own=own: leaf[own][None], events)
            hidden = np.asarray(gated.run.model.encode(gated.variables, one), np.float64)[0, -1]
            scores = table[1:] @ hidden
            ranks.append(1 + (scores > scores[probes.target[row] - 1]).sum())
        return np.median(ranks)

    for arm in ("repeated", "random"):
        expected = [median_rank(arm, count) for count in (0, 2)]
        assert got["arms"][arm]["median_rank"] == expected
        unseen = [median_rank(arm, count, shown=False) for count in (0, 2)]
        assert got["not_shown"][arm]["median_rank"] == unseen
    assert "validation, 40 histories" in figure.get_suptitle()
    # Drawn: the rank by arm, and what repetition adds, at each number of insertions.
    ranks, sink = figure.axes
    assert [label.get_text() for label in sink.get_xticklabels()] == ["0", "2"]
    means = [entry["mean"] for entry in got["sink"]]
    np.testing.assert_allclose(sink.containers[0].lines[0].get_ydata(orig=False), means)
    logs = [entry["mean"] for entry in got["arms"]["random"]["log2_rank"]]
    np.testing.assert_allclose(np.log2(ranks.containers[1].lines[0].get_ydata(orig=False)), logs)


def test_a_probe_longer_than_a_row_of_the_model_is_refused():
    learned = subject("learned", model={"positions": "learned", "max_length": 8})
    released = subject("released", model={"causal": False}, data={"plan": "prefixes"})
    for made in (learned, released):
        with pytest.raises(ConfigError, match=f"10 events, and {made.name} reads rows of 8: low"):
            analyses.analyse_insertion_probe([made], analyses.Settings(probe=PROBE))


def test_a_model_that_reads_padding_is_probed_in_rows_as_in_training(monkeypatch):
    released = subject("released", model={"causal": False}, data={"plan": "prefixes", "length": 13})
    widths, hidden = set(), Subject.hidden

    def note(self, events, slot):
        widths.add(events.items.shape[1])
        return hidden(self, events, slot)

    monkeypatch.setattr(Subject, "hidden", note)
    analyses.analyse_insertion_probe([released], analyses.Settings(probe=PROBE))
    assert widths == {13}


def test_the_state_sink_is_of_each_history_and_its_own_groups():
    """Of forty users in two batches, against all in one; drawn as said."""
    delta = GatedDeltaNetConfig(width=8, heads=2, num_layers=2, key_width=8, value_width=8)
    items = np.random.default_rng(3).integers(1, 60, 480).astype(np.int32)
    log = Dataset.from_arrays(items, np.arange(480), np.arange(0, 481, 12), num_items=60)
    gated = subject("gated", log, experiment=dataclasses.replace(EXPERIMENT, model=delta))
    numbers, figure = analyses.analyse_state_sink([gated], analyses.Settings())
    events = gather_histories(log, *gated.histories("validation", 40), 8)
    model = gated.run.model.merge(gated.variables)
    groups = item_groups(gated.run.source)
    held = np.where(events.segment_ids > 0, groups[events.items], -1)
    frequent, others = most_frequent_groups(held, 3, np.random.default_rng(0))
    for name, traced in trace(model, events).items():
        read = state_sink(np.asarray(traced.memory), np.asarray(traced.keys), frequent, others)
        for measure, expected in read.summary().items():
            for key, value in expected.items():
                got = numbers["gated"][name][measure][key]
                np.testing.assert_allclose(got, value, rtol=1e-4, err_msg=f"{name} {measure} {key}")
    lift, rank = figure.axes
    for panel, container, measure in (
        (lift, 0, "occupancy_lift"),
        (lift, 1, "control_lift"),
        (rank, 0, "effective_rank"),
    ):
        drawn = panel.containers[container].lines[0].get_ydata(orig=False)
        means = [reading[measure]["mean"] for reading in numbers["gated"].values()]
        np.testing.assert_allclose(drawn, means)


def test_gates_are_read_of_every_user_once():
    """Of forty users in batches of 32: the last is filled up, and its filling is no user."""
    delta = GatedDeltaNetConfig(width=8, heads=1, num_layers=1, key_width=8, value_width=8)
    many = Dataset.from_arrays(
        np.tile(ITEMS[:20], 10), np.arange(200), np.arange(0, 201, 5), num_items=9
    )
    gated = subject("gated", many, experiment=dataclasses.replace(EXPERIMENT, model=delta))
    assert analyses.ANALYSES["gates"].applicable([gated, subject("recgrela")]) == [gated]
    numbers, figure = analyses.analyse_gates([gated], analyses.Settings(users=50))
    gates = numbers["gated"]["blocks/0"]
    assert set(gates) == {"kept", "written"}
    assert all(gate["users"] == 40 for gate in gates.values())
    model = gated.run.model.merge(gated.variables)
    block, read = model.blocks[0], np.reshape(ITEMS[:20], (4, 5))[:, :3]
    _, beta = block.mixer.gates(block.mixer_norm(model.embedding(read) * 8**0.5))
    assert gates["written"]["mean"] == pytest.approx(float(beta.mean()), rel=1e-5)
    assert len(figure.axes) == 2


def test_buckets_by_the_age_of_the_transition_and_by_none():
    """Users whose target followed two and five events ago, and one whose never did."""
    histories = [[1, 2, 3, 1, 2], [1, 2, 3, 4, 5, 1, 2], [1, 2, 3, 4, 5]]
    log = Dataset.from_arrays(
        np.concatenate(histories).astype(np.int32), np.arange(17), np.array([0, 5, 12, 17]), 5
    )
    settings = analyses.Settings(split="test", metric="HR@10")
    numbers, figure = analyses.analyse_buckets([subject("a", log)], settings)
    # Repeated before the target: 1 of 4, 1 of 6 and 0 of 4 events.
    shares = numbers["a"]["none"]["share_of_repeats"]
    assert {record["name"]: record["targets"] for record in shares if record["targets"]} == {
        "0-10%": 1,
        "10-25%": 1,
        "25-50%": 1,
    }
    ages = numbers["a"]["none"]["transition_age"]
    assert {record["name"]: record["targets"] for record in ages if record["targets"]} == {
        "0-9": 2,
        "never": 1,
    }
    # Of five items every target is among the first ten.
    assert ages[-1]["metrics"]["HR@10"] == 1
    # Targets are items 2, 2 and 5: with three training events, and with one.
    popularity = numbers["a"]["none"]["popularity"]
    assert {record["name"]: record["targets"] for record in popularity} == {
        "0": 0,
        "1-9": 3,
        "10-99": 0,
        "100-999": 0,
        "1,000+": 0,
    }
    assert len(figure.axes) == 4
    nobody = Dataset.from_arrays(
        np.tile(np.arange(1, 6, dtype=np.int32), 3), np.arange(15), np.arange(0, 16, 5), 5
    )
    numbers, figure = analyses.analyse_buckets([subject("a", nobody)], settings)
    assert numbers["a"]["none"]["transition_age"][-1]["targets"] == 3
    assert len(figure.axes) == 3
    # Nobody else has item 5, and the user's own last events are targets.
    alone = Dataset.from_arrays(
        np.array([1, 2, 3, 4, 5], np.int32), np.arange(5), np.array([0, 5]), 5
    )
    numbers, _ = analyses.analyse_buckets([subject("a", alone)], settings)
    assert numbers["a"]["none"]["popularity"][0]["targets"] == 1
