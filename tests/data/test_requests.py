"""Users by the log's own ids, the ends of their histories, and request times."""

import numpy as np
import pytest

from linseqrec.data.dataset import Dataset, write_dataset
from linseqrec.data.requests import (
    RequestError,
    find_items,
    find_users,
    histories_before,
    request_times,
)
from linseqrec.data.splits import from_folds, leave_one_out


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
