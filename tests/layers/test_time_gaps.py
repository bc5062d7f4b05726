"""Gaps in days against a loop over the events, and their state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linseqrec.layers.gap_features import GapFeatures
from linseqrec.layers.time_gaps import gaps_in_days
from tests.ops.closeness import assert_close
from tests.ops.layouts import LAYOUT


def random_times(segment_ids, seed=0):
    """Seconds within decades, in order within a row; and something at padding."""
    steps = np.random.default_rng(seed).exponential(3e7, segment_ids.shape)
    times = np.minimum(np.cumsum(steps, axis=1), 2**31 - 1).astype(np.int32)
    return np.where(segment_ids > 0, times, 12345)


def by_loops(times, segment_ids, last):
    gaps, after = np.zeros(times.shape), np.array(last)
    for b, row in enumerate(segment_ids):
        before, segment = last[b], None
        for t in np.flatnonzero(row):
            if segment is not None and row[t] != segment:
                before = -1
            if before >= 0:
                gaps[b, t] = min(max((int(times[b, t]) - int(before)) / 86_400, 0), 3650)
            before, segment = times[b, t], row[t]
            after[b] = before
    return gaps, after


@pytest.mark.parametrize("carried", [False, True])
def test_gaps_are_those_of_a_loop(carried):
    times = random_times(LAYOUT)
    last = np.array([5, -1, 77, 10**6, 0]) if carried else np.full(5, -1)
    gaps, after = gaps_in_days(times, LAYOUT, jnp.asarray(last) if carried else None)
    expected, last_after = by_loops(times, LAYOUT, last)
    assert gaps.dtype == jnp.float32 and after.dtype == jnp.int32
    assert_close(gaps, expected, 1e-6)
    np.testing.assert_array_equal(after, last_after)
    assert (np.asarray(gaps)[LAYOUT == 0] == 0).all()


def test_seconds_are_subtracted_as_integers():
    late = 2**31 - 100
    gaps, _ = gaps_in_days(jnp.array([[late, late + 1]]), jnp.array([[1, 1]]))
    assert gaps[0, 1] == pytest.approx(1 / 86_400)


def test_gaps_are_clipped():
    times = jnp.array([[0, 2**31 - 1, 5]])
    gaps, _ = gaps_in_days(times, jnp.ones_like(times))
    np.testing.assert_array_equal(gaps, [[0, 3650, 0]])


def test_event_by_event_equals_the_whole_row():
    times = random_times(LAYOUT)
    ids = np.where(LAYOUT > 0, 1, 0)
    whole, last = gaps_in_days(times, ids)
    state, gaps = None, []
    for t in range(ids.shape[1]):
        now, state = gaps_in_days(times[:, t : t + 1], ids[:, t : t + 1], state)
        gaps.append(now)
    np.testing.assert_array_equal(np.concatenate(gaps, axis=1), whole)
    np.testing.assert_array_equal(state, last)


def test_features_are_the_waves_and_none_of_no_gap():
    layer = GapFeatures(6, waves=3, rngs=nnx.Rngs(0))
    kernel = np.asarray(layer.projection.kernel[...], np.float64)
    gaps = np.array([[0.0, 1 / 86_400, 1.0, 400.0, 3650.0]])
    u = np.log1p(gaps)[..., None] * np.array([1, 2, 4]) * np.pi / np.log(3651)
    expected = np.concatenate([np.sin(u), 1 - np.cos(u)], axis=-1) @ kernel
    features = jax.jit(layer)(jnp.asarray(gaps, jnp.float32))
    assert_close(features, expected, 1e-6)
    assert (np.asarray(features)[0, 0] == 0).all()
