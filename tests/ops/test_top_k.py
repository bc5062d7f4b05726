"""The best items of a catalogue in blocks, against a sort of all scores."""

import numpy as np
import pytest

from linseqrec.ops.top_k import catalogue_top_k

ITEMS, WIDTH = 300, 5


def integer_case(rows=11):
    """Vectors of few integers: scores that are exact, and tie everywhere."""
    rng = np.random.default_rng(0)
    hidden = rng.integers(-2, 3, (rows, WIDTH)).astype(np.float32)
    table = rng.integers(-1, 2, (ITEMS + 1, WIDTH)).astype(np.float32)
    table[0] = 100 * np.sign(hidden[0])  # padding that would win
    seen = rng.integers(0, ITEMS + 1, (rows, 90))
    return hidden, table, seen


def sorted_best(hidden, table, k, seen):
    """Ids and scores by a stable sort: the lower id first among equals."""
    scores = hidden.astype(np.float64) @ table.T.astype(np.float64)
    scores[:, 0] = -np.inf
    for row, items in enumerate(seen):
        scores[row, items] = -np.inf
    ids = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(scores, ids, 1)
    return np.where(np.isneginf(best), 0, ids), best


# With few of a block, groups of 64 items are chosen first.
@pytest.mark.parametrize(
    ("item_block", "k"), [(64, 40), (192, 300), (8192, 40), (192, 2), (8192, 3), (8192, 4)]
)
def test_blocks_give_the_first_of_a_stable_sort(item_block, k):
    hidden, table, seen = integer_case()
    for items in (None, seen):
        ids, scores, finite = catalogue_top_k(hidden, table, k, items, item_block=item_block)
        removed = np.zeros((len(hidden), 0), int) if items is None else items
        expected_ids, expected_scores = sorted_best(hidden, table, k, removed)
        np.testing.assert_array_equal(ids, expected_ids)
        np.testing.assert_array_equal(scores, expected_scores)
        assert np.asarray(finite).all()


@pytest.mark.parametrize(("item_block", "k"), [(64, 40), (192, 2), (8192, 3), (8192, 300)])
def test_only_allowed_items_are_among_the_best(item_block, k):
    hidden, table, seen = integer_case()
    allowed = np.random.default_rng(1).random(ITEMS + 1) < 0.3
    allowed[:2] = True  # padding never counts
    forbidden = np.broadcast_to(np.flatnonzero(~allowed), (len(hidden), (~allowed).sum()))
    for items in (None, seen):
        ids, scores, _ = catalogue_top_k(
            hidden, table, k, items, allowed=allowed, item_block=item_block
        )
        removed = forbidden if items is None else np.concatenate([forbidden, items], axis=1)
        expected_ids, expected_scores = sorted_best(hidden, table, k, removed)
        np.testing.assert_array_equal(ids, expected_ids)
        np.testing.assert_array_equal(scores, expected_scores)


def test_a_score_that_is_not_finite_is_told_of():
    hidden, table, _ = integer_case()
    hidden[3, 1] = np.nan
    table[0] = np.inf  # padding is no candidate, and no matter
    finite = catalogue_top_k(hidden, table, 4, item_block=64)[2]
    np.testing.assert_array_equal(np.flatnonzero(~np.asarray(finite)), [3])


@pytest.mark.usefixtures("without_type_checks")
def test_what_cannot_be_asked_is_refused():
    hidden, table, seen = integer_case()
    for k in (0, ITEMS + 1):
        with pytest.raises(ValueError, match=f"k is {k}, but the catalogue has {ITEMS} items"):
            catalogue_top_k(hidden, table, k)
    with pytest.raises(ValueError, match=rf"allowed must be \[{ITEMS + 1}\], one flag an id"):
        catalogue_top_k(hidden, table, 3, allowed=np.ones(ITEMS, bool))
    with pytest.raises(ValueError, match="multiple of 64"):
        catalogue_top_k(hidden, table, 3, item_block=100)
    with pytest.raises(ValueError, match="shapes do not fit"):
        catalogue_top_k(hidden[:, :4], table, 3)
    with pytest.raises(ValueError, match=r"seen must be \[11, S\]"):
        catalogue_top_k(hidden, table, 3, seen[:5])
