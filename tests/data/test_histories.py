"""`gather_histories` against a loop over rows, written from the definition."""

import numpy as np
import pytest

from linseqrec.data.dataset import Dataset
from linseqrec.data.histories import gather_histories

ORIGIN = 1_000_000_000


def _dataset():
    rng = np.random.default_rng(0)
    lengths = np.array([7, 1, 12, 3, 30])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    events = offsets[-1]
    timestamps = np.concatenate([np.sort(rng.integers(0, 10**9, n)) for n in lengths]) + ORIGIN
    card = {"time": {"first": ORIGIN}}
    return Dataset(rng.integers(1, 50, events).astype(np.int32), timestamps, offsets, 50, card)


@pytest.mark.parametrize("length", [1, 5, 12, 64])
def test_rows_hold_the_last_events_before_their_end(length):
    dataset = _dataset()
    users = np.array([4, 0, 0, 2, 1, 3, 2])
    ends = dataset.offsets[users] + np.array([29, 7, 0, 5, 1, 2, 12])
    last_requests = ORIGIN + np.array([0, 10, 20, 30, 40, 50, 2**31 - 1])
    events = gather_histories(dataset, users, ends, length, last_requests)
    assert all(
        leaf.dtype == np.int32 and leaf.shape == (7, length) for leaf in vars(events).values()
    )
    for row, (user, end) in enumerate(zip(users, ends, strict=True)):
        own = list(range(max(dataset.offsets[user], end - length), end))
        blank = [0] * (length - len(own))
        np.testing.assert_array_equal(events.items[row], [*dataset.items[own], *blank])
        np.testing.assert_array_equal(
            events.timestamps[row], [*(dataset.timestamps[own] - ORIGIN), *blank]
        )
        np.testing.assert_array_equal(events.segment_ids[row], [1] * len(own) + blank)
        np.testing.assert_array_equal(events.positions[row], [*range(len(own)), *blank])
        requests = [*dataset.timestamps[own[1:]], last_requests[row]] if own else []
        np.testing.assert_array_equal(
            events.request_times[row], [*(np.array(requests, int) - ORIGIN), *blank]
        )
    hidden = gather_histories(dataset, users, ends, length)
    assert hidden.request_times is None


def test_without_a_length_the_longest_history_sets_the_width():
    dataset = _dataset()
    users = np.array([0, 4])
    events = gather_histories(dataset, users, dataset.offsets[users] + [3, 21], None)
    assert events.items.shape == (2, 21)


def test_an_end_outside_its_user_and_a_length_of_zero_are_refused():
    dataset = _dataset()
    message = r"ends\[1\] is 9: it must be between 0 and 7, the events of user 0"
    with pytest.raises(ValueError, match=message):
        gather_histories(dataset, np.array([1, 0]), np.array([8, 9]), 4)
    with pytest.raises(ValueError, match="length is 0: it must be at least 1, or None"):
        gather_histories(dataset, np.array([0]), np.array([3]), 0)
