"""Users and items by the log's own ids, the ends of histories, request times, and the rows."""

import numpy as np
import pytest

from linseqrec.data.dataset import Dataset
from linseqrec.data.histories import (
    RequestError,
    find_items,
    find_users,
    gather_histories,
    histories_before,
    request_times,
)
from linseqrec.data.splits import from_folds, leave_one_out
from linseqrec.data.writing import write_dataset

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


def small(**more):
    """Users of 4, 0, 2 and 3 events."""
    return Dataset.from_arrays(
        np.array([1, 2, 3, 1, 2, 3, 3, 1, 2]), np.arange(9), np.array([0, 4, 4, 6, 9]), **more
    )


def test_histories_end_before_targets_or_after_the_last_event():
    dataset = small()
    split = leave_one_out(dataset)
    for before, users, ends in [
        ("validation", [0, 3], [2, 7]),
        ("test", [0, 3], [3, 8]),
        ("none", [0, 2, 3], [4, 6, 9]),
    ]:
        histories = histories_before(dataset, split, before)
        np.testing.assert_array_equal(histories, (users, ends))
        # Requested users keep their order.
        reversed_histories = histories_before(dataset, split, before, np.array(users[::-1]))
        np.testing.assert_array_equal(reversed_histories, (users[::-1], ends[::-1]))


def test_the_targets_of_a_user_are_in_time_order():
    dataset = small(folds=np.array([0, 2, 2, 2, 0, 0, 0, 2, 2]))
    split = from_folds(dataset)
    histories = histories_before(dataset, split, "test", np.array([3, 0]))
    np.testing.assert_array_equal(histories, ([3, 3, 0, 0, 0], [7, 8, 1, 2, 3]))
    message = "there is no validation target in the folds split.*choose another split"
    with pytest.raises(RequestError, match=message):
        histories_before(dataset, split, "validation")


def test_items_are_found_by_their_ids():
    item_ids = np.array(["", "x", "y", "z"])
    np.testing.assert_array_equal(find_items(["z", "", "x", "z"], item_ids), [3, 0, 1, 3])
    with pytest.raises(RequestError, match="no such items in the data set: w, 1"):
        find_items(["x", "w", "1"], item_ids)


def test_errors_name_unknown_users_and_users_without_a_history(tmp_path):
    dataset = write_dataset(
        tmp_path / "data", small(), ["ann", "bob", "cy", "dee"], ["x", "y", "z"]
    )
    user_ids = dataset.user_ids()
    split = leave_one_out(dataset)
    users = find_users(["dee", "cy", "bob", "dee"], user_ids)
    np.testing.assert_array_equal(users, [3, 2, 1])
    with pytest.raises(RequestError, match="without test target in the leave_one_out.*: cy, bob;"):
        histories_before(dataset, split, "test", users)
    with pytest.raises(RequestError, match="users without event: bob; leave them out"):
        histories_before(dataset, split, "none", users)
    unknown = [f"s{number}" for number in range(12)]
    with pytest.raises(RequestError, match="no such users in the data set: s0, .*s9 and 2 more$"):
        find_users(["ann", *unknown], user_ids)


def test_a_request_time_is_the_target_s_time_or_now():
    dataset, ends = small(), np.array([3, 8])
    times = request_times(dataset, "test", ends, known=True, now=None)
    np.testing.assert_array_equal(times, [3, 8])
    times = request_times(dataset, "none", ends + 1, known=True, now=8)
    np.testing.assert_array_equal(times, [8, 8])
    for before in ("validation", "none"):
        assert request_times(dataset, before, ends, known=False, now=None) is None
    for before, known, now, message in [
        ("none", True, None, "now is not given, .*'known': it must be .* from 8, the time of the"),
        ("none", True, 7, "now is 7, .* from 8"),
        ("none", True, 2**31, f"now is {2**31}, .* to {2**31 - 1}$"),
        ("none", False, 9, "now is 9, but this run's data.request_time is 'hidden': leave it out"),
        ("test", True, 9, "now is 9, but the request time before a test target is the target's"),
    ]:
        with pytest.raises(RequestError, match=message):
            request_times(
                dataset, before, ends + 1 if before == "none" else ends, known=known, now=now
            )
