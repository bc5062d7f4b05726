"""HyTRec against its equations in float64; its decomposition, ratios, controls and state."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linseqrec.layers.time_gaps import gaps_in_days, no_timestamp, shuffled_gaps
from linseqrec.models.base import NoState
from linseqrec.models.hytrec import HyTRecConfig
from linseqrec.models.weights import load_parameters
from linseqrec.sharding import parameter_path
from tests.models import hytrec_reference
from tests.models.hytrec_reference import DAY, random_times
from tests.models.reference import (
    abstract_model,
    assert_states_equal,
    make_events,
    random_histories,
    random_model,
    run,
)

# Two layers of windows of 3 events reach exactly the last 5.
SMALL = HyTRecConfig(
    width=12,
    heads=3,
    short_events=5,
    short_layers=2,
    num_layers=2,
    ratio="1:1",
    question="delayed",
    dropout=0.0,
)
LINEAR = dataclasses.replace(SMALL, num_layers=1, ratio="1:0", short_layers=1)


def parameter_names(config):
    leaves = jax.tree_util.tree_leaves_with_path(nnx.state(abstract_model(config)))
    return {parameter_path(path) for path, _ in leaves}


def timed_events(rows, time, **where):
    """`make_events` with bursts and absences, the same clock for every history."""
    events = make_events(rows, time, **where)
    clock = random_times(64)
    return dataclasses.replace(
        events, timestamps=clock[events.positions] * (events.segment_ids > 0)
    )


# Sizes and variants unlike the defaults, and windows that differ.
UNLIKE = dict(
    short_events=4,
    attention_window=4,
    key_width=5,
    value_width=2,
    kernel=2,
    feed_forward=2,
    gate="beta",
    time="positions",
)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        dict(timed_attention=True),
        UNLIKE,
        dict(dtype="bfloat16"),
        dict(dtype="bfloat16", timed_attention=True),
        dict(question="present"),
        dict(question="present", timed_attention=True, attention_window=4, gate="retention"),
        dict(question="present", time="positions", gate="erase", kernel=2, short_events=1),
        dict(question="present", dtype="bfloat16"),
        dict(question="short"),
        dict(question="short", time="none", gate="beta", kernel=2, short_events=4),
        dict(question="short", dtype="bfloat16"),
        dict(attention_convolution=True, kernel=3, timed_attention=True),
        dict(attention_convolution=True, kernel=2, question="present", attention_window=4),
    ],
    ids=["plain", "timed", "unlike", "bfloat16", "timed-bfloat16"]
    + ["present", "present-timed", "present-unlike", "present-bfloat16"]
    + ["short", "short-unlike", "short-bfloat16"]
    + ["convolved-timed", "convolved-present"],
)
def test_the_hidden_states_are_the_equations(fields):
    """On packed rows, with histories shorter than K and of one event."""
    config = dataclasses.replace(SMALL, **fields)
    dtype = config.compute_dtype
    model, arrays = random_model(config)
    histories = random_histories([17, 3, 1, 12])
    events = timed_events([histories[:2], histories[2:]], 24, start=1, gap=2)
    encoding = run(model, events)
    assert encoding.hidden.dtype == jnp.dtype(dtype) and encoding.losses == {}
    hidden = np.asarray(encoding.hidden, np.float64)
    slots = [(0, 1), (0, 20), (1, 1), (1, 4)]
    for history, (row, start) in zip(histories, slots, strict=True):
        part = hidden[row, start : start + len(history)]
        clock = random_times(64)[: len(history)]
        expected = hytrec_reference.hytrec(config, arrays, np.array(history), clock)
        if dtype == "float32":
            np.testing.assert_allclose(part, expected, atol=5e-5)
        else:
            assert np.sqrt(np.mean((part - expected) ** 2) / np.mean(expected**2)) < 0.05


# ---------------------------------------------------------------------------- the decomposition


@pytest.mark.parametrize("branches, layers", [("short", 2), ("short", 3), ("long", 2), ("both", 2)])
@pytest.mark.parametrize(
    "convolution",
    [{}, dict(attention_convolution=True, kernel=2)],
    ids=["rotary", "convolved"],
)
def test_an_event_moves_the_short_branch_for_k_events_and_the_long_one_from_then_on(
    branches, layers, convolution
):
    """Row 0 is a history; row 1 + s the same with another item at s."""
    config = dataclasses.replace(SMALL, branches=branches, short_layers=layers, **convolution)
    model, _ = random_model(config)
    [history] = random_histories([14])
    rows = [history] + [
        [*history[:s], history[s] % 50 + 1, *history[s + 1 :]] for s in range(len(history))
    ]
    hidden = np.asarray(run(model, timed_events([[row] for row in rows], 14)).hidden)
    moved = np.abs(hidden[1:] - hidden[0]).max(axis=2)
    after = np.arange(14) - np.arange(14)[:, None]
    reach = {"short": (0, 5), "long": (5, 99), "both": (0, 99)}[branches]
    seen = (after >= reach[0]) & (after < reach[1])
    assert moved[seen].min() > 1e-5
    np.testing.assert_array_equal(moved[~seen], 0)


@pytest.mark.parametrize(
    "fields, asking",
    [
        (dict(kernel=1), {"present": 1, "short": 1}),
        (dict(kernel=3, num_layers=4), {"present": 5, "short": 3}),
        (dict(kernel=1, ratio="0:1"), {"present": 1, "short": 1}),
        (dict(kernel=2, ratio="0:1", attention_convolution=True), {"present": 3, "short": 2}),
    ],
    ids=["one tap", "three taps in two layers", "softmax only", "softmax with two taps"],
)
@pytest.mark.parametrize("question", ["present", "short"])
def test_of_the_last_k_events_only_the_question_enters_the_long_reading(question, fields, asking):
    """Where the short branch sees its own event only: `asking` events, and those from K = 7 on."""
    config = dataclasses.replace(SMALL, question=question, short_events=7, **fields)
    model, arrays = random_model(config)
    blind = [name for name in arrays if name.startswith("short/") and "/mixer/output/" in name]
    load_parameters(model, arrays | {name: 0 * arrays[name] for name in blind})
    [history] = random_histories([14])
    rows = [history] + [
        [*history[:s], history[s] % 50 + 1, *history[s + 1 :]] for s in range(len(history))
    ]
    hidden = np.asarray(run(model, timed_events([[row] for row in rows], 14)).hidden)
    moved = np.abs(hidden[1:] - hidden[0]).max(axis=2)
    after = np.arange(14) - np.arange(14)[:, None]
    # Before event K, and two taps later in the second layer, taps ask memories that are empty.
    through_taps = (after > 0) & (after < asking[question])
    seen = (after == 0) | (through_taps & (np.arange(14) >= 9)) | (after >= 7)
    assert moved[seen].min() > 1e-6
    np.testing.assert_array_equal(moved[~seen & ~through_taps], 0)


def test_windows_reach_k_events():
    for events in range(1, 40):
        for layers in range(1, 6):
            config = dataclasses.replace(SMALL, short_events=events, short_layers=layers)
            _, windows = config.block_windows()
            reach = 1 + sum(window - 1 for window in windows)
            assert len(windows) == layers and reach == events
            if events > 3 * layers:
                _, windows = dataclasses.replace(config, attention_convolution=True).block_windows()
                assert min(windows) >= 1
                assert 1 + sum(window - 1 + 3 for window in windows) == events


@pytest.mark.parametrize(
    "ratio, pattern",
    [("1:0", "TTTTTTTT"), ("7:1", "TTTTTTTs"), ("3:1", "TTTsTTTs"), ("1:1", "TsTsTsTs")]
    + [("0:1", "ssssssss")],
)
def test_the_ratio_says_which_blocks_are_linear(ratio, pattern):
    config = dataclasses.replace(SMALL, num_layers=8, ratio=ratio, attention_window=9)
    windows, _ = config.block_windows()
    assert windows == [None if letter == "T" else 9 for letter in pattern]
    names = parameter_names(config)
    linear = [f"long/{i}/mixer/log_horizon" in names for i in range(8)]
    assert linear == [letter == "T" for letter in pattern]


# ------------------------------------------------------------------------------------- controls


def test_each_control_takes_away_what_it_names():
    names = lambda **fields: parameter_names(dataclasses.replace(SMALL, **fields))  # noqa: E731
    top = lambda these: {name.split("/")[0] for name in these}  # noqa: E731
    everything = names()
    assert top(everything - names(branches="long")) == {"short", "fusion"}
    assert top(everything - names(branches="short")) == {"long", "null", "fusion"}
    assert everything - names(time="none") == {"long/0/mixer/log_horizon"}
    horizons = {f"{block}/mixer/log_horizon" for block in ("long/1", "short/0", "short/1")}
    assert names(timed_attention=True) - everything == horizons
    normed = {"long_norm/scale", "short_norm/scale"}
    asked = {question: names(question=question) for question in ("present", "short")}
    assert everything - asked["present"] == {"null"} and asked["present"] - everything == normed
    assert top(asked["short"] - asked["present"]) == {"reading"}
    for question in asked:
        alone = names(question=question, branches="short")
        assert alone == names(branches="short")
        plain = dict(branches="long", short_events=0)
        assert names(question=question, **plain) == names(**plain)
    gate = {f"long/0/mixer/spike_gate/{kind}" for kind in ("kernel", "bias")}
    assert everything - names(gate="none") == gate
    for same in (
        dict(gate="erase"),
        dict(gate="beta"),
        dict(gate="retention"),
        dict(time="positions"),
    ):
        assert names(**same) == everything


@pytest.mark.parametrize(
    "model, idle",
    [
        (dict(branches="short"), dict(time="positions")),
        (dict(ratio="0:1"), dict(time="positions")),
        (dict(ratio="0:1"), dict(gate="none")),
        (dict(time="none"), dict(timed_attention=True)),
        (dict(ratio="1:0", branches="long", short_events=0), dict(timed_attention=True)),
    ],
)
def test_a_setting_of_blocks_that_are_not_there_changes_nothing(model, idle):
    config = dataclasses.replace(SMALL, **model)
    (first, arrays), (second, others) = map(
        random_model, (config, dataclasses.replace(config, **idle))
    )
    assert arrays.keys() == others.keys()
    events = timed_events([random_histories([9])], 9)
    np.testing.assert_array_equal(run(first, events).hidden, run(second, events).hidden)


@pytest.mark.parametrize("timed", [False, True])
def test_without_a_gap_the_model_is_that_without_time(timed):
    timeless, _ = random_model(dataclasses.replace(SMALL, time="none"))
    model, arrays = random_model(dataclasses.replace(SMALL, timed_attention=timed))
    load_parameters(
        timeless, {name: x for name, x in arrays.items() if not name.endswith("log_horizon")}
    )
    events = make_events([random_histories([12])], 12)
    events = dataclasses.replace(events, timestamps=jnp.full_like(events.timestamps, 7))
    np.testing.assert_allclose(run(model, events).hidden, run(timeless, events).hidden, atol=1e-5)
    apart = timed_events([random_histories([12])], 12)
    assert np.abs(run(model, apart).hidden - run(timeless, apart).hidden).max() > 1e-4


@pytest.mark.parametrize("question", ["present", "short"])
def test_a_branch_alone_is_the_same_whatever_the_question(question):
    events = timed_events([random_histories([9])], 9)
    for alone in (dict(branches="short"), dict(branches="long", short_events=0)):
        config = dataclasses.replace(SMALL, **alone)
        (first, _), (second, _) = (
            random_model(dataclasses.replace(config, question=each))
            for each in ("delayed", question)
        )
        np.testing.assert_array_equal(run(first, events).hidden, run(second, events).hidden)


def test_the_long_branch_alone_without_delay_reads_every_event():
    plain = dataclasses.replace(LINEAR, branches="long", short_events=0)
    delayed = dataclasses.replace(LINEAR, branches="long", short_events=4)
    (first, _), (second, arrays) = random_model(plain), random_model(delayed)
    # There is no time when it has nothing to say.
    load_parameters(first, {name: array for name, array in arrays.items() if name != "null"})
    events = timed_events([random_histories([9])], 9)
    at_once, late = run(first, events), run(second, events)
    np.testing.assert_allclose(at_once.hidden[:, :5], late.hidden[:, 4:], atol=1e-6)
    assert at_once.state.delay == ()


@pytest.mark.parametrize("timed", [False, True])
def test_shuffled_gaps_are_gaps_of_other_times_and_carry_no_state(timed):
    config = dataclasses.replace(LINEAR, timed_attention=timed)
    (model, _), (plain, _) = (
        random_model(dataclasses.replace(config, time=time)) for time in ("shuffled", "gaps")
    )
    events = timed_events([random_histories([18])], 18)
    shuffled = run(model, events)
    assert shuffled.state == NoState()
    gaps, _ = gaps_in_days(events.timestamps, events.segment_ids, no_timestamp(1))
    gaps = shuffled_gaps(gaps, events.segment_ids)
    seconds = np.cumsum(np.round(np.asarray(gaps, np.float64) * DAY), axis=1).astype(np.int32)
    retimed = dataclasses.replace(events, timestamps=seconds)
    np.testing.assert_allclose(shuffled.hidden, run(plain, retimed).hidden, atol=1e-5)
    assert np.abs(shuffled.hidden - run(plain, events).hidden).max() > 0.05
    with pytest.raises(ValueError, match="reads whole rows: it carries no state"):
        model(events, state=())


def test_noise_is_a_function_of_the_key():
    model, _ = random_model(dataclasses.replace(LINEAR, dropout=0.3))
    events = timed_events([random_histories([9])], 9)
    first, again, other = (
        np.asarray(run(model, events, dropout_key=jax.random.key(seed)).hidden)
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(heads=4), "width 12 must be a multiple of twice the heads, 4"),
        (dict(ratio="3:1"), "num_layers 2 must be a multiple of 4, the blocks of ratio '3:1'"),
        (dict(num_layers=0), "num_layers is 0: it must be at least 1"),
        (dict(heads=0), "heads is 0"),
        (dict(kernel=0), "kernel is 0"),
        (dict(gate="writ"), "gate is 'writ'.*did you mean 'write'"),
        (dict(branches="shrt"), "branches is 'shrt'.*did you mean 'short'"),
        (dict(question="presnt"), "question is 'presnt'.*did you mean 'present'"),
        (dict(question="short", branches="long"), "question='short' needs the short branch"),
        (dict(ratio="0:0"), "ratio '0:0' must be two counts, not both 0"),
        (dict(ratio="3-1"), "ratio '3-1' must be two counts"),
        (dict(short_events=0), "short_events 0 must be at least 1"),
        (dict(short_layers=0), "short_layers is 0"),
        (dict(attention_convolution=True), "short_events 5 must be at least 7, which the taps"),
        (dict(attention_window=0), "attention_window is 0"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_settings_that_make_no_model_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **wrong)


def test_the_short_branch_alone_has_no_blocks_of_the_ratio():
    short = dataclasses.replace(SMALL, branches="short", num_layers=2, ratio="3:1")
    assert short.block_windows() == ([], SMALL.block_windows()[1])


# ---------------------------------------------------------------------------------------- state

# Windows of 4 events in the long branch: a history outgrows its cache.
STREAMING = {
    "1:0": LINEAR,
    "1:1": dataclasses.replace(SMALL, short_layers=1, attention_window=4),
    "0:1": dataclasses.replace(LINEAR, ratio="0:1", attention_window=4),
    "timed": dataclasses.replace(LINEAR, ratio="0:1", attention_window=4, timed_attention=True),
    "present": dataclasses.replace(
        SMALL,
        short_layers=1,
        question="present",
        attention_window=4,
        timed_attention=True,
        gate="retention",
    ),
    "short": dataclasses.replace(SMALL, short_layers=1, question="short", attention_window=4),
    "lookups": dataclasses.replace(
        SMALL,
        short_layers=1,
        question="present",
        attention_window=4,
        attention_convolution=True,
        kernel=3,
        timed_attention=True,
    ),
}


def streamed(model, events, parts):
    """Encodes events in parts of so many slots, from an empty past on."""
    # As long as the whole row, so that both are one program.
    nothing = jax.tree.map(lambda x: 0 * x, events)
    state, hidden, start = run(model, nothing).state, [], 0
    for part in parts:
        now = jax.tree.map(lambda x, a=start, b=start + part: x[:, a:b], events)
        encoding = run(model, now, state)
        state, start = encoding.state, start + part
        hidden.append(encoding.hidden)
    return np.concatenate(hidden, axis=1), state


@pytest.mark.parametrize("name", STREAMING)
def test_event_by_event_and_in_uneven_parts_equals_the_whole_row(name):
    """Rows end at different times: what comes after its last event leaves a row's state alone."""
    model, _ = random_model(STREAMING[name])
    lengths = [16, 7, 1, 0]
    events = timed_events([[history] for history in random_histories(lengths)], 16)
    whole, real, times = run(model, events), events.items > 0, random_times(64)
    for parts in ([1] * 16, [6, 1, 1, 1, 6, 1]):
        hidden, state = streamed(model, events, parts)
        np.testing.assert_allclose(hidden[real], whole.hidden[real], atol=2e-5, rtol=1e-5)
        assert_states_equal(state, whole.state)
        np.testing.assert_array_equal(state.length, lengths)
        last = [times[length - 1] if length else -1 for length in lengths]
        np.testing.assert_array_equal(state.last_timestamp, last)


def test_bfloat16_goes_on_from_a_state_as_well():
    model, _ = random_model(dataclasses.replace(SMALL, short_layers=1, dtype="bfloat16"))
    events = timed_events([random_histories([16])], 16)
    whole = np.asarray(run(model, events).hidden, np.float64)
    hidden, _ = streamed(model, events, [8, 8])
    assert np.sqrt(np.mean((hidden - whole) ** 2) / np.mean(whole**2)) < 0.02


@pytest.mark.parametrize("question", ["delayed", "present", "short"])
@pytest.mark.parametrize("length", [6, 3], ids=["longer than K", "younger than K"])
def test_the_state_goes_on_into_the_first_history_of_a_row_only(question, length):
    model, _ = random_model(dataclasses.replace(SMALL, short_layers=1, question=question))
    first, second = random_histories([9, length])
    alone = run(model, timed_events([[first], [second]], 16))
    past = run(model, timed_events([[first[:4]], []], 16)).state
    rows = [[first[4:], second], [second]]
    packed = run(model, timed_events(rows, 16, start=3, goes_on_from=[4, 0]), past)
    np.testing.assert_allclose(packed.hidden[0, 3:8], alone.hidden[0, 4:9], atol=2e-5)
    np.testing.assert_allclose(
        packed.hidden[0, 8 : 8 + length], alone.hidden[1, :length], atol=2e-5
    )
    assert_states_equal(packed.state, jax.tree.map(lambda x: x[jnp.array([1, 1])], alone.state))
