"""TADN against its equations in float64; its gates, clocks, state and controls."""

import types

import jax
import numpy as np
import pytest
from flax import nnx

from linseqrec.layers.tadn import TADN
from linseqrec.layers.time_gaps import Clock, DaysSince, gaps_in_days, gaps_taken, no_timestamp
from linseqrec.models.weights import load_parameters, parameter_arrays
from tests.models.hytrec_reference import random_times, temporal_delta
from tests.models.reference import jit, randomise

WIDTH, HEADS, TIME = 12, 2, 18
WIDTHS = dict(key_width=7, value_width=5)
VARIANTS = [
    ("write", "gaps"),
    ("retention", "gaps"),
    ("erase", "gaps"),
    ("beta", "gaps"),
    ("none", "gaps"),
    ("write", "none"),
    ("write", "positions"),
]


def random_mixer(gate="write", time="gaps", **options):
    mixer = nnx.eval_shape(
        lambda: TADN(
            WIDTH, HEADS, gate=gate, timed=time != "none", rngs=nnx.Rngs(0), **WIDTHS, **options
        )
    )
    return mixer, randomise(mixer)


def inputs(batch=1, time=TIME, seed=0):
    x = np.random.default_rng(seed).normal(size=(batch, time, WIDTH)).astype(np.float32)
    times = np.stack([random_times(time, seed + row) for row in range(batch)])
    return x, np.ones((batch, time), np.int32), times


@jit
def _gaps(times, ids):
    return gaps_in_days(times, ids, no_timestamp(len(ids)))[0]


def days(times, ids, time="gaps"):
    return np.asarray(gaps_taken(time, _gaps(times, ids), ids))


_run = jit(lambda g, p, *rest, **asked: nnx.merge(g, p)(*rest, **asked), static_argnums=0)


def run(mixer, x, ids, gaps, state=None, age=None, **asked):
    state = mixer.initial_state(len(x)) if state is None else state
    age = np.zeros_like(gaps) if age is None else age
    clock = Clock(ids, np.zeros_like(ids), gaps, age)
    return _run(*nnx.split(mixer), x, clock, state, **asked)


@pytest.mark.parametrize("gate, time", VARIANTS)
def test_the_outputs_are_the_equations(gate, time):
    """On a packed row: padding, a history of 7 events, one of 18."""
    mixer, arrays = random_mixer(gate, time)
    x, _, times = inputs(time=TIME + 9)
    ids = np.array([[0] + [5] * 7 + [0] + [2] * TIME], np.int32)
    output, _ = run(mixer, x, ids, days(times, ids, time))
    config = types.SimpleNamespace(heads=HEADS, gate=gate, time=time, **WIDTHS)
    arrays = {f"m/{name}": array for name, array in arrays.items()}
    for part in (slice(1, 8), slice(9, None)):
        expected = temporal_delta(
            config, arrays, "m", x[0, part].astype(np.float64), times[0, part]
        )
        np.testing.assert_allclose(output[0, part], expected, atol=3e-5)


@pytest.mark.parametrize(
    "gate, time", [("write", "gaps"), ("erase", "positions"), ("retention", "gaps")]
)
def test_event_by_event_equals_the_whole_row(gate, time):
    mixer, _ = random_mixer(gate, time)
    x, ids, times = inputs(batch=2)
    ids[1, 11:] = 0
    gaps = days(times, ids, time)
    whole, final = run(mixer, x, ids, gaps)
    state, outputs = None, []
    for t in range(TIME):
        now = slice(t, t + 1)
        output, state = run(mixer, x[:, now], ids[:, now], gaps[:, now], state)
        outputs.append(output)
    outputs = np.concatenate(outputs, axis=1)
    np.testing.assert_allclose(outputs[ids > 0], whole[ids > 0], atol=1e-5)
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(final), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_without_time_between_events_it_is_the_variant_without_time():
    mixer, arrays = random_mixer()
    plain, _ = random_mixer(time="none")
    assert set(arrays) - set(parameter_arrays(plain)) == {"log_horizon"}
    load_parameters(plain, {name: a for name, a in arrays.items() if name != "log_horizon"})
    x, ids, times = inputs()
    gaps = days(times, ids)
    expected = run(plain, x, ids, gaps)[0]
    np.testing.assert_allclose(run(mixer, x, ids, 0 * gaps)[0], expected, atol=1e-6)
    assert np.abs(run(mixer, x, ids, gaps)[0] - expected).max() > 0.1


def test_an_absence_fades_the_memory_by_its_days_over_the_horizon():
    mixer, arrays = random_mixer()
    x, ids, times = inputs()
    past = run(mixer, x[:, :-1], ids[:, :-1], days(times, ids)[:, :-1])[1]

    def memory_after(gap):
        gaps = np.full((1, 1), gap, np.float32)
        return np.asarray(run(mixer, x[:, -1:], ids[:, -1:], gaps, past)[1].memory)

    # After ten years nothing is left but what this event writes.
    soon, late, written = (memory_after(gap) for gap in (0, 3, 3650))
    left = np.exp(-3 / np.exp(arrays["log_horizon"]))[:, None, None]
    np.testing.assert_allclose(late - written, left * (soon - written), atol=1e-6)
    assert np.abs(late - written).max() > 1e-3


def test_horizons_start_log_uniform_from_a_day_to_a_year():
    mixer = TADN(400, 400, key_width=1, value_width=1, rngs=nnx.Rngs(0))
    logs = parameter_arrays(mixer)["log_horizon"] / np.log(365)
    assert 0 <= logs.min() < 0.03 and 0.97 < logs.max() <= 1
    assert abs(logs.mean() - 0.5) < 0.06 and abs(logs.std() - 12**-0.5) < 0.03


def test_a_retention_gate_starts_by_trusting_the_past():
    mixer = TADN(WIDTH, HEADS, gate="retention", **WIDTHS, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(mixer.spike_gate.bias[...], 6)


@pytest.mark.parametrize("gate", ["erase", "retention"])
def test_a_closed_gate_divides_by_no_zero_and_has_a_logarithm(gate):
    mixer, arrays = random_mixer(gate)
    load_parameters(mixer, arrays | {"spike_gate/bias": np.full(HEADS, -200, np.float32)})
    graphdef, params = nnx.split(mixer)
    x, ids, times = inputs()
    gaps = days(times, ids)

    def loss(params):
        clock = Clock(ids, 0 * ids, gaps, 0 * gaps)
        output, state = nnx.merge(graphdef, params)(x, clock, mixer.initial_state(len(x)))
        return (output**2).sum() + (state.memory**2).sum()

    value, gradient = jit(jax.value_and_grad(loss))(params)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


# ------------------------------------------------------------------------------ a late memory

LATE = 5


@jit
def _ages(gaps, ids):
    since = DaysSince(LATE)
    return since(gaps, ids, since.initial_state(len(ids)))[0]


def ages(gaps, ids):
    return np.asarray(_ages(gaps, ids))


def test_each_event_weighs_what_the_time_up_to_now_leaves_of_it():
    """By hand: keys of e_0, e_1 and e_2 in one head, no erasing, no decay of the content.

    The memory is a sum over the events up to t - 5, each with exp(-(now - then) / T), T = 2 days.
    """
    mixer = TADN(
        4, 1, key_width=4, value_width=4, gate="none", kernel=1, delay=LATE, rngs=nnx.Rngs(0)
    )
    arrays = {name: 0 * array for name, array in parameter_arrays(mixer).items()}
    arrays["query_key_value/kernel"] = 50 * np.tile(np.eye(4), 3)  # SiLU leaves large ones alone
    arrays["convolution/weight"] += 1
    arrays["step_bias"] -= 100.0  # softplus of it is 0
    arrays["log_horizon"] = np.log([2.0])
    load_parameters(mixer, {name: array.astype(np.float32) for name, array in arrays.items()})
    then = np.array([0, 1, 1.5, 40, 40, 40.25, 43, 50, 50, 51])  # days
    items = [0, 1, 2, 3, 3, 3, 3, 3, 3, 3]
    # Row t ends after event t.
    ids = np.tri(10, dtype=np.int32)
    x, gaps = np.eye(4)[items], np.diff(then, prepend=0)
    x, gaps = (np.stack([array] * 10).astype(np.float32) for array in (x, gaps))
    memories = run(mixer, x, ids, gaps, age=ages(gaps, ids))[1].memory
    for now, memory in enumerate(memories):
        expected = np.zeros((4, 4))
        for event in range(min(3, now + 1 - LATE)):
            # β is ½, a value 50.
            expected[event, event] = 25 * np.exp(-(then[now] - then[event]) / 2)
        np.testing.assert_allclose(memory[0, :3], expected[:3], rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("gate, time", VARIANTS)
def test_a_late_memory_is_the_one_of_then_faded_until_now(gate, time):
    mixer, arrays = random_mixer(gate, time, delay=LATE)
    prompt, _ = random_mixer(gate, time)
    load_parameters(prompt, arrays)
    # One history, which ends after another event in each row.
    ends = np.array([LATE, 11, TIME - 1]) + 1
    x, _, times = (np.repeat(array, len(ends), axis=0) for array in inputs())
    so_far, then = (
        (np.arange(TIME) < end).astype(np.int32) for end in np.array([ends, ends - LATE])[..., None]
    )
    gaps = days(times, so_far, time)
    late = run(mixer, x, so_far, gaps, age=ages(gaps, so_far))[1]
    early = run(prompt, x, then, gaps * then)[1]
    left = np.ones((len(ends), HEADS, 1, 1))
    if time != "none":
        passed = (gaps * (so_far - then)).astype(np.float64).sum(axis=1)
        left = np.exp(-passed[:, None] / np.exp(arrays["log_horizon"]))[..., None, None]
    np.testing.assert_allclose(late.memory, left * early.memory, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("gate, time", VARIANTS)
def test_late_outputs_are_the_equations_asked_by_another_stream(gate, time):
    """On a packed row: padding, a history of 7 events, one of 4, one of 18."""
    mixer, arrays = random_mixer(gate, time, delay=LATE)
    x, _, times = inputs(time=TIME + 13)
    asked, _, _ = inputs(time=TIME + 13, seed=7)
    ids = np.array([[0] + [5] * 7 + [0] + [3] * 4 + [2] * TIME], np.int32)
    gaps = days(times, ids, time)
    output, _ = run(mixer, x, ids, gaps, question=asked, age=ages(gaps, ids))
    config = types.SimpleNamespace(heads=HEADS, gate=gate, time=time, **WIDTHS)
    arrays = {f"m/{name}": array for name, array in arrays.items()}
    for part in (slice(1, 8), slice(9, 13), slice(13, None)):
        expected = temporal_delta(
            config,
            arrays,
            "m",
            x[0, part].astype(np.float64),
            times[0, part],
            delay=LATE,
            question=asked[0, part].astype(np.float64),
        )
        np.testing.assert_allclose(output[0, part], expected, atol=3e-5)
        np.testing.assert_array_equal(output[0, part][:LATE], 0)


def test_of_the_last_events_only_the_question_enters():
    """What is written moves readings from 5 events later on; what asks, those of its four taps."""
    mixer, _ = random_mixer(delay=LATE)
    x, ids, times = inputs()
    asked, _, _ = inputs(seed=7)
    gaps = days(times, ids)
    call = lambda x, asked: np.asarray(  # noqa: E731
        run(mixer, x, ids, gaps, question=asked, age=ages(gaps, ids))[0]
    )
    before = call(x, asked)
    after = np.arange(TIME) - np.arange(TIME)[:, None]
    rest = np.broadcast_to(np.arange(TIME) >= LATE, after.shape)
    moved = np.zeros((2, TIME, TIME))
    for s in range(TIME):
        other = np.where(np.arange(TIME)[:, None] == s, x + 1, x)
        moved[0, s] = np.abs(call(other, asked) - before).max(axis=(0, 2))
        other = np.where(np.arange(TIME)[:, None] == s, asked + 1, asked)
        moved[1, s] = np.abs(call(x, other) - before).max(axis=(0, 2))
    for stream, seen in enumerate((after >= LATE, (after >= 0) & (after < 4) & rest)):
        assert moved[stream][seen].min() > 1e-6
        np.testing.assert_array_equal(moved[stream][~seen], 0)


@pytest.mark.parametrize("gate", ["write", "retention"])
def test_a_late_memory_goes_on_event_by_event(gate):
    """Of the second row's history the memory has not heard yet when the row ends."""
    mixer, _ = random_mixer(gate, delay=LATE)
    x, _, times = inputs(batch=2)
    asked, _, _ = inputs(batch=2, seed=7)
    ids = np.ones((2, TIME), np.int32)
    ids[1, 3:] = 0
    gaps = days(times, ids)
    whole, final = run(mixer, x, ids, gaps, question=asked, age=ages(gaps, ids))
    state, outputs = None, []
    for t in range(TIME):
        now = slice(t, t + 1)
        output, state = run(
            mixer,
            *(array[:, now] for array in (x, ids, gaps)),
            state,
            question=asked[:, now],
            age=ages(gaps, ids)[:, now],
        )
        outputs.append(output)
    outputs = np.concatenate(outputs, axis=1)
    np.testing.assert_allclose(outputs[ids > 0], whole[ids > 0], atol=1e-5)
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(final), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    np.testing.assert_array_equal(final.memory[1], 0)
