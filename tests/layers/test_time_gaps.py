"""Gaps in days against a loop over events, and their shuffled control."""

import jax
import numpy as np
import pytest

from linseqrec.layers import time_gaps
from linseqrec.layers.time_gaps import DaysSince, no_timestamp, shuffled_gaps
from tests.ops.layouts import LAYOUT

gaps_in_days = jax.jit(time_gaps.gaps_in_days)

DAY = 86_400


def random_times(ids, seed=0):
    """Seconds that rise within a segment, with noise at padding."""
    rng = np.random.default_rng(seed)
    steps = rng.integers(0, 3 * DAY, ids.shape)
    times = 2**30 + np.cumsum(steps, axis=1)
    return np.where(ids > 0, times, rng.integers(0, 2**31 - 1, ids.shape)).astype(np.int32)


def by_loops(times, ids, last):
    gaps, final = np.zeros(ids.shape), np.array(last)
    for b in range(len(ids)):
        current = None
        for t in np.flatnonzero(ids[b]):
            if current is None:
                before = last[b]
            elif ids[b, t] == current:
                before = final[b]
            else:
                before = -1
            if before >= 0:
                gaps[b, t] = (int(times[b, t]) - int(before)) / DAY
            current, final[b] = ids[b, t], times[b, t]
    return gaps, final


@pytest.mark.parametrize("carried", [False, True])
def test_equal_the_loop_whatever_the_segments(carried):
    times = random_times(LAYOUT)
    last = np.array([2**30 - 7 * DAY, -1, 5 * DAY, 2**30 - 1, 0] if carried else [-1] * 5, np.int32)
    gaps, final = gaps_in_days(times, LAYOUT, last if carried else no_timestamp(5))
    expected, expected_final = by_loops(times, LAYOUT, last)
    assert gaps.dtype == np.float32 and final.dtype == np.int32
    np.testing.assert_allclose(gaps, np.clip(expected, 0, 3650), rtol=1e-6)
    np.testing.assert_array_equal(final, expected_final)


def test_a_second_in_the_last_of_68_years_is_a_second():
    times = np.array([[2**31 - 3, 2**31 - 2, 2**31 - 1]], np.int32)
    gaps, _ = gaps_in_days(times, np.ones_like(times), np.array([0], np.int32))
    np.testing.assert_allclose(gaps[0], [3650, 1 / DAY, 1 / DAY], rtol=1e-6)


def test_a_clock_that_goes_back_counts_as_no_time():
    times, ids = np.array([[9 * DAY, 5 * DAY, 6 * DAY]]), np.ones((1, 3), np.int32)
    gaps, final = gaps_in_days(times, ids, no_timestamp(1))
    np.testing.assert_allclose(gaps[0], [0, 0, 1])
    assert final[0] == 6 * DAY


def test_an_event_at_time_0_has_come_before():
    """-1 is no past; 0 is the log's first second."""
    times, ids = np.array([[DAY]], np.int32), np.ones((1, 1), np.int32)
    for last, expected in [(0, 1.0), (-1, 0.0)]:
        assert gaps_in_days(times, ids, np.array([last], np.int32))[0][0, 0] == expected


def test_shuffled_gaps_are_each_segments_own():
    gaps = np.random.default_rng(0).random(LAYOUT.shape).astype(np.float32)
    gaps[LAYOUT == 0] = 0
    shuffled = np.asarray(shuffled_gaps(gaps, LAYOUT))
    for before, after, ids in zip(gaps, shuffled, LAYOUT, strict=True):
        assert np.all(after[ids == 0] == 0)
        for segment in set(ids) - {0}:
            mine = np.flatnonzero(ids == segment)
            assert before[mine[0]] == after[mine[0]]
            np.testing.assert_array_equal(np.sort(before[mine]), np.sort(after[mine]))
            if len(mine) > 4:
                assert np.mean(before[mine] != after[mine]) > 0.5


def test_shuffling_depends_on_positions_only():
    gaps = np.random.default_rng(0).random((1, 9)).astype(np.float32)
    alone = shuffled_gaps(gaps, np.ones((1, 9), np.int32))[0]
    ids = np.array([[0, 0, 4, 4, 4, 0] + [2] * 9 + [0]], np.int32)
    packed = np.zeros(ids.shape, np.float32)
    packed[0, 6:15] = gaps[0]
    np.testing.assert_array_equal(shuffled_gaps(packed, ids)[0, 6:15], alone)


@pytest.mark.parametrize("events", [1, 3, 6, 25])
def test_days_since_an_earlier_event_are_differences_of_times(events):
    """In packed rows, in two parts of a history, and as exact behind years of others as alone."""
    times = random_times(LAYOUT)
    gaps = np.asarray(gaps_in_days(times, LAYOUT, no_timestamp(5))[0])
    layer = DaysSince(events)
    since, nothing = jax.jit(layer.__call__), layer.initial_state(5)
    days, recent = since(gaps, LAYOUT, nothing)
    expected = np.zeros(LAYOUT.shape)
    for b, ids in enumerate(LAYOUT):
        for t in range(events, len(ids)):
            if ids[t] and ids[t] == ids[t - events]:
                expected[b, t] = (int(times[b, t]) - int(times[b, t - events])) / DAY
    np.testing.assert_allclose(days, expected, rtol=1e-6)
    first, carried = since(gaps[:, :8], LAYOUT[:, :8], nothing)
    # Rows whose history goes on across the cut.
    going = np.flatnonzero((LAYOUT[:, 7] == LAYOUT[:, 8]) & (LAYOUT[:, 8] > 0))
    second, last = since(gaps[:, 8:], LAYOUT[:, 8:], carried)
    for row in going:
        np.testing.assert_allclose(first[row], expected[row, :8], rtol=1e-6)
        own = LAYOUT[row, 8:] == LAYOUT[row, 8]
        np.testing.assert_allclose(second[row][own], expected[row, 8:][own], rtol=1e-6)
        np.testing.assert_allclose(last.values[row], recent.values[row], rtol=1e-6)
    assert len(going) > 1
    years = np.concatenate([np.full((5, 6), 3650.0, np.float32), gaps], axis=1)
    behind = np.concatenate([np.full((5, 6), 9), LAYOUT], axis=1)
    later, _ = since(years, behind, nothing)
    np.testing.assert_array_equal(later[:, 6:], days)
