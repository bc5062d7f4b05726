"""What is read of a request's time, against the calendar and float64; and fading until then."""

import datetime
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linseqrec.events import Events
from linseqrec.layers.conditional_memory import NoMemory
from linseqrec.layers.request_time import RequestTime, calendar, elapsed_bucket
from linseqrec.layers.tadn import TADN
from linseqrec.layers.tdgd import TDGD
from linseqrec.layers.time_gaps import Clock, NoGapFeatures, waits_in_days
from tests.models.reference import randomise

LATEST = 2**31 - 1


def test_buckets_are_powers_of_two():
    seconds = [-5, 0, 1, 2, 3, 4, 7, 8, 59, 60, 2**24 - 1, 2**24, 2**30 - 1, 2**30, LATEST]
    expected = [max(second, 0).bit_length() for second in seconds]
    np.testing.assert_array_equal(elapsed_bucket(jnp.array(seconds, jnp.int32)), expected)
    assert expected[-1] == 31


def test_the_calendar_is_told_to_the_second_after_68_years():
    """Hours and weekdays by `datetime`, and all waves in float64: within 1e-5."""
    rng = np.random.default_rng(0)
    seconds = np.append(rng.integers(0, LATEST, 200), [0, LATEST])
    waves = np.asarray(calendar(jnp.array(seconds, jnp.int32)[None]))[0]
    periods = [86_400] * 4 + [604_800] * 3 + [31_556_952] * 3
    harmonics = [1, 2, 3, 4, 1, 2, 3, 1, 2, 3]
    angles = 2 * np.pi * seconds[:, None] / np.array(periods) * np.array(harmonics)
    np.testing.assert_allclose(waves, np.hstack([np.sin(angles), np.cos(angles)]), atol=1e-5)
    begin = datetime.datetime(2000, 1, 1)  # a Saturday
    for second, wave in zip(seconds.tolist(), waves, strict=True):
        then = begin + datetime.timedelta(seconds=second)
        of_day = (then.hour * 3_600 + then.minute * 60 + then.second) / 86_400
        assert abs(wave[0] - np.sin(2 * np.pi * of_day)) < 1e-5
        of_week = ((then.weekday() - 5) % 7 + of_day) / 7
        assert abs(wave[10 + 4] - np.cos(2 * np.pi * of_week)) < 1e-5


def test_the_layer_is_its_equations():
    layer = RequestTime(6, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))
    arrays = randomise(layer)
    times = np.array([[0, 5, 90, 90, 10**9]], np.int32)
    requests = np.array([[5, 90, 90, 10**9, 10**9 + 3_600]], np.int32)
    ones = np.ones_like(times)
    events = Events(ones, times, ones, ones, requests)
    x = np.random.default_rng(1).normal(size=(1, 5, 6)).astype(np.float32)
    waves = np.asarray(calendar(jnp.array(requests)), np.float64)
    buckets = [int(wait).bit_length() for wait in (requests - times)[0]]
    features = arrays["elapsed"][buckets] + waves[0] @ arrays["calendar/kernel"]
    features = features / (1 + np.exp(-features))
    entered = x[0] + features @ arrays["input/kernel"]
    np.testing.assert_allclose(layer.enter(jnp.array(x), events)[0], entered, atol=1e-5)
    gain, shift = np.split(features @ arrays["output/kernel"], 2, axis=-1)
    left = x[0] * (1 + gain) + shift
    np.testing.assert_allclose(layer.leave(jnp.array(x), events)[0], left, atol=1e-5)


def test_waits_are_the_days_until_the_request():
    times = np.array([[0, 2**31 - 86_401, 7, 9]], np.int32)
    requests = np.array([[43_200, LATEST, 5, LATEST]], np.int32)
    ones = np.ones_like(times)
    waits = waits_in_days(Events(ones, times, ones, ones, requests))
    np.testing.assert_allclose(waits, [[0.5, 1.0, 0.0, 3_650.0]], rtol=1e-6)
    assert waits_in_days(Events(ones, times, ones, ones)) is None


def tadn(rngs):
    def mix(mixer, x, ids, gaps, wait=None):
        return mixer(x, Clock(ids, 0 * ids, gaps, 0 * gaps, wait), mixer.initial_state(len(x)))[0]

    return TADN(8, 2, key_width=4, value_width=4, rngs=rngs), mix


def tdgd(rngs):
    mixer = TDGD(
        8,
        2,
        key_width=4,
        value_width=4,
        gap_features=None,
        temporal_decay=True,
        write_gate="none",
        read_removal=False,
        rngs=rngs,
    )

    def mix(mixer, x, ids, gaps, wait=None):
        memory, _ = NoMemory()(x, ids, ())
        told = dict(gaps=gaps, gap_features=NoGapFeatures()(gaps), memory=memory, wait=wait)
        return mixer(x, ids, mixer.initial_state(len(x)), **told)[0]

    return mixer, mix


@pytest.mark.parametrize("make", [tadn, tdgd])
def test_a_reading_fades_until_its_request(make):
    """Head by head: what each one adds to the output, times exp(-wait / T)."""
    mixer, mix = make(nnx.Rngs(0))
    mix = functools.partial(nnx.jit(mix), mixer)
    randomise(mixer)
    mixer.log_horizon[...] = jnp.log(jnp.array([2.0, 30.0]))
    rng = np.random.default_rng(2)
    x = jnp.array(rng.normal(size=(2, 7, 8)), jnp.float32)
    ids, gaps = jnp.ones((2, 7), jnp.int32), jnp.array(rng.gamma(1, 2, (2, 7)), jnp.float32)
    wait = rng.gamma(1, 5, (2, 7))
    kernel, expected = mixer.output.kernel[...], 0
    for head, horizon in enumerate((2.0, 30.0)):
        own = jnp.zeros_like(kernel).at[4 * head : 4 * head + 4].set(1)
        mixer.output.kernel[...] = kernel * own
        expected += np.exp(-wait / horizon)[..., None] * np.asarray(mix(x, ids, gaps))
    mixer.output.kernel[...] = kernel
    told = mix(x, ids, gaps, wait=jnp.array(wait, jnp.float32))
    np.testing.assert_allclose(told, expected, atol=1e-5)
    assert np.abs(told - mix(x, ids, gaps)).max() > 0.1
    at_once = jax.tree.map(jnp.zeros_like, gaps)
    np.testing.assert_allclose(mix(x, ids, gaps, wait=at_once), mix(x, ids, gaps), atol=1e-6)
