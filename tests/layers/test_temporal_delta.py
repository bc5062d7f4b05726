"""TADN against its equations in float64; its gates, clocks, state and controls."""

import types

import jax
import numpy as np
import pytest
from flax import nnx

from linseqrec.layers.temporal_delta import TemporalDeltaMixer
from linseqrec.layers.time_gaps import gaps_in_days, gaps_taken
from linseqrec.models.weights import load_parameters, parameter_arrays
from tests.models.hytrec_reference import random_times, temporal_delta
from tests.models.reference import jit, randomise

WIDTH, HEADS, TIME = 12, 2, 18
VARIANTS = [
    ("write", "gaps"),
    ("erase", "gaps"),
    ("beta", "gaps"),
    ("none", "gaps"),
    ("write", "none"),
    ("write", "positions"),
]


def random_mixer(gate="write", time="gaps"):
    mixer = TemporalDeltaMixer(WIDTH, HEADS, gate=gate, timed=time != "none", rngs=nnx.Rngs(0))
    return mixer, randomise(mixer)


def inputs(batch=1, time=TIME, seed=0):
    x = np.random.default_rng(seed).normal(size=(batch, time, WIDTH)).astype(np.float32)
    times = np.stack([random_times(time, seed + row) for row in range(batch)])
    return x, np.ones((batch, time), np.int32), times


def days(times, ids, time="gaps"):
    return np.asarray(gaps_taken(time, gaps_in_days(times, ids)[0], ids))


_run = jit(lambda g, p, *rest: nnx.merge(g, p)(*rest), static_argnums=0)


def run(mixer, x, ids, gaps, state=None):
    return _run(*nnx.split(mixer), x, ids, gaps, state)


@pytest.mark.parametrize("gate, time", VARIANTS)
def test_the_outputs_are_the_equations(gate, time):
    """On a packed row: padding, a history of 7 events, one of 18."""
    mixer, arrays = random_mixer(gate, time)
    x, _, times = inputs(time=TIME + 9)
    ids = np.array([[0] + [5] * 7 + [0] + [2] * TIME], np.int32)
    output, _ = run(mixer, x, ids, days(times, ids, time))
    config = types.SimpleNamespace(heads=HEADS, gate=gate, time=time)
    arrays = {f"m/{name}": array for name, array in arrays.items()}
    for part in (slice(1, 8), slice(9, None)):
        expected = temporal_delta(
            config, arrays, "m", x[0, part].astype(np.float64), times[0, part]
        )
        np.testing.assert_allclose(output[0, part], expected, atol=3e-5)


@pytest.mark.parametrize("gate, time", [("write", "gaps"), ("erase", "positions")])
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
    mixer = TemporalDeltaMixer(400, 400, rngs=nnx.Rngs(0))
    logs = parameter_arrays(mixer)["log_horizon"] / np.log(365)
    assert 0 <= logs.min() < 0.03 and 0.97 < logs.max() <= 1
    assert abs(logs.mean() - 0.5) < 0.06 and abs(logs.std() - 12**-0.5) < 0.03


def test_a_closed_erase_gate_divides_by_no_zero():
    mixer, arrays = random_mixer("erase")
    load_parameters(mixer, arrays | {"spike_gate/bias": np.full(HEADS, -200, np.float32)})
    graphdef, params = nnx.split(mixer)
    x, ids, times = inputs()
    gaps = days(times, ids)

    def loss(params):
        output, state = nnx.merge(graphdef, params)(x, ids, gaps)
        return (output**2).sum() + (state.memory**2).sum()

    value, gradient = jit(jax.value_and_grad(loss))(params)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
