"""Semantic groups, and how much of a history repeats."""

import numpy as np

from linseqrec.analysis.groups import item_groups, most_frequent_groups
from linseqrec.analysis.repeats import share_of_repeats, transition_ages
from linseqrec.data.dataset import Dataset
from linseqrec.data.source import Source
from linseqrec.data.splits import leave_one_out
from linseqrec.data.worlds import generate
from tests.data.small_worlds import SMALL

ITEMS = np.array([1, 2, 1, 1, 3, 3, 2, 4], np.int32)
LOG = Dataset.from_arrays(ITEMS, np.arange(8), np.array([0, 5, 8]), 4)


def test_items_that_lie_together_are_one_group():
    table = np.array([[9.0, 9.0], [1.0, 0.1], [5.0, 0.2], [-0.1, 2.0], [0.0, 0.1]])
    groups = item_groups(Source(LOG, leave_one_out(LOG), None), table, num_groups=2)
    assert groups[0] == -1
    assert groups[1] == groups[2] != groups[3] == groups[4]


def test_a_world_knows_its_groups():
    world = generate(SMALL, 0)
    source = Source(world.dataset, leave_one_out(world.dataset), world)
    groups = item_groups(source, np.zeros((SMALL.num_items + 1, 2)))
    np.testing.assert_array_equal(groups[1:], world.catalogue.category[1:])
    assert groups[0] == -1


def test_most_frequent_groups_and_others():
    rows = np.array([[4, 4, 2, 2, 2, 0, -1, -1], [7, -1, -1, -1, -1, -1, -1, -1]])
    frequent, others = most_frequent_groups(rows, 2, np.random.default_rng(0))
    np.testing.assert_array_equal(frequent[0], [rows[0] == 2, rows[0] == 4])
    np.testing.assert_array_equal(others[0], [rows[0] == 0, rows[0] == 99])
    np.testing.assert_array_equal(frequent[1], [rows[1] == 7, rows[1] == 99])
    assert not others[1].any()


def test_share_of_repeats_is_of_what_came_before():
    # Before event 4 of the first user: 1 2 1 1; before event 7 of the second: 3 2.
    shares = share_of_repeats(LOG, np.array([0, 1]), np.array([4, 7]))
    np.testing.assert_allclose(shares, [0.5, 0.0])


def test_a_transition_is_as_old_as_its_last_occurrence():
    histories = [
        [1, 2, 3, 1, 2, 4, 1, 2],  # 2 followed 1 three events ago, and six
        [5, 5, 5],  # 5 5 has just been
        [1, 2, 1, 3],  # 1 was followed by 2 only
        [3],  # no history
        [1, 2],  # the transition itself is none before it
        [1, 2],  # nor is that of the user before
    ]
    log = Dataset.from_arrays(
        np.concatenate(histories).astype(np.int32),
        np.arange(20),
        np.cumsum([0, *map(len, histories)]),
        5,
    )
    ages = transition_ages(log, np.arange(6), np.asarray(log.offsets[1:]) - 1)
    np.testing.assert_array_equal(ages, [3, 1, np.nan, np.nan, np.nan, np.nan])
