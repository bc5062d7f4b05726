"""Semantic groups, and how much of a history repeats."""

import numpy as np

from linseqrec.analysis.groups import (
    cooccurrence_vectors,
    item_groups,
    most_frequent_groups,
)
from linseqrec.analysis.repeats import share_of_repeats, transition_ages
from linseqrec.data.dataset import Dataset
from linseqrec.data.source import Source
from linseqrec.data.splits import leave_one_out
from linseqrec.data.worlds import generate
from tests.data.small_worlds import SMALL

ITEMS = np.array([1, 2, 1, 1, 3, 3, 2, 4], np.int32)
LOG = Dataset.from_arrays(ITEMS, np.arange(8), np.array([0, 5, 8]), 4)


def test_items_that_occur_together_are_one_group():
    """Two kinds of users, who share no item; the last item is alone in its history."""
    rng = np.random.default_rng(0)
    kinds = rng.permutation(np.repeat([0, 1], 20))
    members = [np.flatnonzero(kinds == kind) + 1 for kind in (0, 1)]
    histories = [rng.permutation(members[user % 2]) for user in range(30)]
    items = np.concatenate([*histories, [41]]).astype(np.int32)
    log = Dataset.from_arrays(items, np.arange(601), np.array([*range(0, 601, 20), 601]), 41)
    groups = item_groups(Source(log, leave_one_out(log), None), num_groups=2)
    assert groups[0] == -1
    for own in members:
        assert len(np.unique(groups[own])) == 1
    assert groups[members[0][0]] != groups[members[1][0]]


def test_items_that_do_not_differ_are_one_group(recwarn):
    """Most occur near no other: more clusters are asked for than there are different vectors."""
    items = np.array([1, 2, 1, *range(3, 40)], np.int32)
    log = Dataset.from_arrays(items, np.arange(40), np.array([0, *range(3, 41)]), 39)
    groups = item_groups(Source(log, leave_one_out(log), None), num_groups=8)
    assert len(np.unique(groups[3:])) == 1
    assert groups[1] != groups[3] != groups[2]
    assert not [warning for warning in recwarn if "kmeans" in str(warning.message)]
    assert not [warning for warning in recwarn if warning.category is RuntimeWarning]


def test_cooccurrence_vectors_factorise_the_mutual_information():
    """Of a small catalogue all dimensions are kept: V Vᵀ is the root of M Mᵀ."""
    rng = np.random.default_rng(1)
    items = rng.integers(1, 12, 300).astype(np.int32)
    offsets = np.array([0, 4, 60, 150, 300])
    log = Dataset.from_arrays(items, np.arange(300), offsets, 11)
    counts = np.zeros((12, 12))
    for start, end in zip(offsets[:-1], offsets[1:], strict=True):
        for one in range(start, end):
            for other in range(one + 1, min(one + 6, end)):
                if items[one] != items[other]:
                    counts[items[one], items[other]] += 1
                    counts[items[other], items[one]] += 1
    share = counts / counts.sum()
    independent = share.sum(1)[:, None] * share.sum(0)
    information = np.log(
        np.divide(share, independent, out=np.ones_like(share), where=share > 0)
    ).clip(0)
    vectors = cooccurrence_vectors(log)
    root = vectors @ vectors.T
    np.testing.assert_allclose(root @ root, information @ information.T, atol=1e-10)
    np.testing.assert_array_equal(vectors, cooccurrence_vectors(log))


def test_what_never_occurs_together_has_no_vector():
    log = Dataset.from_arrays(np.ones(6, np.int32), np.arange(6), np.array([0, 3, 6]), 2)
    assert not cooccurrence_vectors(log).any()
    np.testing.assert_array_equal(
        item_groups(Source(log, leave_one_out(log), None), num_groups=1), [-1, 0, 0]
    )


def test_a_world_knows_its_groups():
    world = generate(SMALL, 0)
    source = Source(world.dataset, leave_one_out(world.dataset), world)
    groups = item_groups(source)
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
