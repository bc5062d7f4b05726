"""Which histories are asked for, by the log's own ids."""

import numpy as np
import pytest

from linseqrec.data.dataset import Dataset, write_dataset
from linseqrec.data.requests import RequestError, find_users, histories_before, original_ids
from linseqrec.data.splits import from_folds, leave_one_out


def small(**more):
    """Users of 4, 0, 2 and 3 events."""
    return Dataset.from_arrays(
        np.array([1, 2, 3, 1, 2, 3, 3, 1, 2]), np.arange(9), np.array([0, 4, 4, 6, 9]), **more
    )


def test_histories_end_before_targets_or_after_everything():
    dataset = small()
    split = leave_one_out(dataset)
    for before, users, ends in [
        ("validation", [0, 3], [2, 7]),
        ("test", [0, 3], [3, 8]),
        ("none", [0, 2, 3], [4, 6, 9]),
    ]:
        found = histories_before(dataset, split, before)
        np.testing.assert_array_equal(found, (users, ends))
        # As asked for, in that order.
        back = histories_before(dataset, split, before, np.array(users[::-1]))
        np.testing.assert_array_equal(back, (users[::-1], ends[::-1]))


def test_all_targets_of_a_user_are_taken_in_time_order():
    dataset = small(folds=np.array([0, 2, 2, 2, 0, 0, 0, 2, 2]))
    split = from_folds(dataset)
    found = histories_before(dataset, split, "test", np.array([3, 0]))
    np.testing.assert_array_equal(found, ([3, 3, 0, 0, 0], [7, 8, 1, 2, 3]))
    with pytest.raises(RequestError, match="there is no validation target in the folds split"):
        histories_before(dataset, split, "validation")


def test_who_has_no_history_is_named(tmp_path):
    dataset = write_dataset(
        tmp_path / "data", small(), ["ann", "bob", "cy", "dee"], ["x", "y", "z"]
    )
    user_ids, item_ids = original_ids(dataset)
    np.testing.assert_array_equal(item_ids, ["", "x", "y", "z"])
    split = leave_one_out(dataset)
    asked = find_users(["dee", "cy", "bob", "dee"], user_ids)
    np.testing.assert_array_equal(asked, [3, 2, 1])
    with pytest.raises(RequestError, match="without test target in the leave_one_out.*: cy, bob;"):
        histories_before(dataset, split, "test", asked)
    with pytest.raises(RequestError, match="users without event: bob; leave them out"):
        histories_before(dataset, split, "none", asked)
    strangers = [f"s{number}" for number in range(12)]
    with pytest.raises(RequestError, match="no such users in the data set: s0, .*s9 and 2 more$"):
        find_users(["ann", *strangers], user_ids)


def test_in_memory_the_ids_are_the_numbers():
    user_ids, item_ids = original_ids(small())
    assert user_ids.tolist() == ["0", "1", "2", "3"]
    assert item_ids.tolist() == ["", "1", "2", "3"]
