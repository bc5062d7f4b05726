"""Ranks against the definition, item by item in float64, and their independence of any blocking."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linseqrec.evaluation.metrics import rank_metrics
from linseqrec.evaluation.ranks import (
    NonFiniteScoreError,
    catalogue_ranks,
    count_catalogue,
    count_scores,
)


def slow_ranks(scores, targets, seen=None, ties="mean"):
    """The mean (or worst) place of the target over the orders that sort its row of scores."""
    ranks = []
    for row, target in enumerate(targets):
        removed = {0} | (set() if seen is None else set(seen[row].tolist()))
        ids = np.array(sorted((set(range(scores.shape[1])) - removed) | {target}))
        values = np.sort(scores[row, ids])[::-1]
        places = np.flatnonzero(values == scores[row, target]) + 1
        ranks.append(places.mean() if ties == "mean" else places.max())
    return np.array(ranks, np.float64)


def score_ranks(scores, targets):
    """Ranks of the targets by scores at hand."""
    return count_scores(scores, targets).fetch().ranks()


def integer_case(rows=37, items=150, width=5, seed=0):
    """Small integers: every dot product is exact in float32, and many tie."""
    rng = np.random.default_rng(seed)
    hidden = rng.integers(-2, 3, (rows, width)).astype(np.float32)
    table = rng.integers(-2, 3, (items + 1, width)).astype(np.float32)
    table[0] = 9.0  # would win nearly everywhere if padding were a candidate
    targets = rng.integers(1, items + 1, rows)
    seen = rng.integers(0, items + 1, (rows, 60))
    seen[::3, 7] = targets[::3]  # some targets were seen
    return hidden, table, targets, seen


@pytest.mark.parametrize("ties", ["mean", "pessimistic"])
@pytest.mark.parametrize("item_block", [64, 128, 8192])
@pytest.mark.parametrize("filtered", [False, True])
def test_ranks_are_those_of_the_definition(filtered, item_block, ties):
    hidden, table, targets, seen = integer_case()
    seen = seen if filtered else None
    scores = hidden.astype(np.float64) @ table.T.astype(np.float64)
    expected = slow_ranks(scores, targets, seen, ties)
    assert (expected % 1 != 0).any() or ties == "pessimistic"  # the case does hold ties
    ranks = catalogue_ranks(hidden, table, targets, seen, ties=ties, item_block=item_block)
    np.testing.assert_array_equal(ranks, expected)
    counts = count_scores(scores, targets, seen).fetch()
    np.testing.assert_array_equal(counts.ranks("all" if filtered else "none", ties), expected)


def test_one_pass_counts_for_both_filters():
    hidden, table, targets, seen = integer_case()
    scores = hidden.astype(np.float64) @ table.T
    counts = count_catalogue(hidden, table, targets, seen, item_block=64).fetch()
    np.testing.assert_array_equal(counts.ranks("none"), slow_ranks(scores, targets))
    np.testing.assert_array_equal(counts.ranks("all"), slow_ranks(scores, targets, seen))
    distinct = [len(set(row.tolist()) - {0, int(t)}) for row, t in zip(seen, targets, strict=True)]
    np.testing.assert_array_equal(counts.seen, distinct)
    dense = count_scores(scores, targets, seen)
    for name in ("greater", "equal", "seen", "seen_greater", "seen_equal"):
        np.testing.assert_array_equal(getattr(counts, name), getattr(dense, name), err_msg=name)


@pytest.mark.parametrize("width", [50, 256])
def test_neither_batch_size_nor_item_block_changes_a_rank(width):
    rng = np.random.default_rng(width)
    rows, items = 90, 1000
    hidden = rng.normal(size=(rows, width)).astype(np.float32)
    table = rng.normal(size=(items + 1, width)).astype(np.float32)
    targets = rng.integers(1, items + 1, rows)
    # Near-copies of each target, a rounding apart and shuffled over the blocks: any difference in
    # the last bit between two blockings would show.
    copies = rng.permutation(items)[: 4 * rows] + 1
    copies = np.setdiff1d(copies, targets)
    scale = 1 + rng.integers(-2, 3, len(copies)) * np.float32(2**-23)
    table[copies] = table[targets[np.arange(len(copies)) % rows]] * scale[:, None]
    reference = None
    for batch, block in ((rows, 4096), (rows, 64), (45, 960), (9, 256), (1, 64)):
        parts = [
            count_catalogue(
                hidden[i : i + batch], table, targets[i : i + batch], item_block=block, top_k=10
            ).fetch()
            for i in range(0, rows, batch)
        ]
        found = (
            np.concatenate([part.target_score for part in parts]),
            np.concatenate([part.ranks() for part in parts]),
            np.concatenate([part.top for part in parts]),
        )
        reference = reference or found
        for got, expected in zip(found, reference, strict=True):
            np.testing.assert_array_equal(got, expected, err_msg=f"{batch} rows, {block} items")


@pytest.mark.parametrize(("item_block", "loops"), [(64, True), (128, False)])
def test_one_block_of_items_needs_no_loop(item_block, loops):
    """Its end would be data, which an accelerator has to send to the host."""
    count = functools.partial(
        count_catalogue, targets=np.array([1, 99]), item_block=item_block, top_k=3
    )
    program = jax.make_jaxpr(count)(jnp.ones((2, 4)), jnp.ones((100, 4)))
    assert ("while[" in str(program)) == loops


def test_identical_items_tie_exactly_wherever_their_block_is():
    rng = np.random.default_rng(1)
    hidden = rng.normal(size=(16, 50)).astype(np.float32)
    table = np.tile(rng.normal(size=50).astype(np.float32), (1001, 1))
    for block in (64, 448, 8192):
        ranks = catalogue_ranks(hidden, table, rng.integers(1, 1001, 16), item_block=block)
        np.testing.assert_array_equal(ranks, np.full(16, 1 + 999 / 2))


def test_a_constant_model_scores_nothing():
    targets = np.arange(1, 101)
    for ranks in (
        catalogue_ranks(np.ones((100, 4), np.float32), np.ones((101, 4), np.float32), targets),
        score_ranks(np.zeros((100, 101)), targets),
    ):
        metrics, _ = rank_metrics(ranks)
        assert metrics["HR@10"] == metrics["NDCG@10"] == 0.0
        assert metrics["HR@100"] == 1.0


def test_a_tie_across_the_tenth_place_is_shared():
    scores = np.zeros((3, 21))
    scores[:, 1:10] = 2.0  # nine items above everyone
    scores[0, 10:12] = 1.0  # target and one more: places 10 and 11
    scores[1, 10] = 1.0  # target alone on place 10
    scores[2, 10:13] = 1.0
    scores[2, 9] = 1.0  # places 9 to 12
    ranks = score_ranks(scores, np.array([10, 10, 10]))
    np.testing.assert_array_equal(ranks, [10.5, 10.0, 10.5])
    assert rank_metrics(ranks)[0]["HR@10"] == pytest.approx(1 / 3)


def test_float32_vectors_keep_their_precision():
    rng = np.random.default_rng(5)
    hidden, table = rng.normal(size=(40, 32)), rng.normal(size=(401, 32))
    targets = rng.integers(1, 401, 40)
    ranks = catalogue_ranks(hidden.astype(np.float32), table.astype(np.float32), targets)
    np.testing.assert_array_equal(ranks, slow_ranks(hidden @ table.T, targets))


def test_bfloat16_vectors_are_ranked_in_float32():
    rng = np.random.default_rng(2)
    hidden = jnp.asarray(rng.normal(size=(64, 32)), jnp.bfloat16)
    table = jnp.asarray(rng.normal(size=(501, 32)), jnp.bfloat16)
    targets = rng.integers(1, 501, 64)
    wide, wide_table = (np.asarray(x).astype(np.float64) for x in (hidden, table))
    ranks = catalogue_ranks(hidden, table, targets)
    np.testing.assert_array_equal(ranks, slow_ranks(wide @ wide_table.T, targets))
    rounded = np.asarray((hidden @ table.T).astype(jnp.float32)).astype(np.float64)
    assert (slow_ranks(rounded, targets) != ranks).mean() > 0.2  # what it protects from


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_is_refused(bad):
    hidden, table, targets, _ = integer_case(rows=20)
    hidden[[4, 11]] = bad
    with pytest.raises(NonFiniteScoreError, match="rows 4, 11: .*divergence") as caught:
        catalogue_ranks(hidden, table, targets)
    np.testing.assert_array_equal(caught.value.rows, [4, 11])
    scores = np.zeros((5, 8))
    scores[3, 5] = bad
    with pytest.raises(NonFiniteScoreError, match="for rows 3"):
        score_ranks(scores, np.ones(5, int))
    with pytest.raises(NonFiniteScoreError, match="for users 103"):
        count_scores(scores, np.ones(5, int)).fetch("users", np.arange(100, 105))


def test_one_bad_item_is_refused_in_any_block_but_not_at_padding():
    hidden, table, targets, _ = integer_case()
    table[0] = np.nan
    expected = slow_ranks(hidden.astype(np.float64) @ np.nan_to_num(table).T, targets)
    np.testing.assert_array_equal(catalogue_ranks(hidden, table, targets), expected)
    table[150] = np.nan
    with pytest.raises(NonFiniteScoreError, match="and 27 more"):
        catalogue_ranks(hidden, table, targets, item_block=64)


@pytest.mark.parametrize("item_block", [64, 192, 8192])
def test_top_lists_hold_the_best_and_the_best_unseen(item_block):
    hidden, table, targets, seen = integer_case()
    scores = hidden.astype(np.float64) @ table.T.astype(np.float64)
    counts = count_catalogue(hidden, table, targets, seen, item_block=item_block, top_k=12).fetch()
    dense = count_scores(scores, targets, seen, top_k=12)
    for row, target in enumerate(targets):
        best = sorted(range(1, scores.shape[1]), key=lambda item: (-scores[row, item], item))
        unseen = [item for item in best if item == target or item not in seen[row]]
        for found in (counts, dense):
            np.testing.assert_array_equal(found.top[row], best[:12])
            np.testing.assert_array_equal(found.top_unseen[row], unseen[:12])


def test_a_list_longer_than_what_is_left_ends_in_zeros():
    hidden, table = np.ones((1, 2), np.float32), np.ones((6, 2), np.float32)
    targets, seen = np.array([2]), np.array([[1, 3, 5, 2]])
    for counts in (
        count_catalogue(hidden, table, targets, seen, top_k=5).fetch(),
        count_scores(hidden @ table.T, targets, seen, top_k=5),
    ):
        np.testing.assert_array_equal(counts.top, [[1, 2, 3, 4, 5]])
        np.testing.assert_array_equal(counts.top_unseen, [[2, 4, 0, 0, 0]])


def test_what_cannot_be_ranked_is_refused():
    hidden, table = np.ones((2, 3), np.float32), np.ones((6, 3), np.float32)
    for targets in ([1, 0], [1, 6]):
        with pytest.raises(ValueError, match="row 1: target item . is outside.*1 to 5"):
            catalogue_ranks(hidden, table, np.array(targets))
        with pytest.raises(ValueError, match="row 1: target item"):
            score_ranks(np.ones((2, 6)), np.array(targets))
    with pytest.raises(ValueError, match="multiple of 64"):
        catalogue_ranks(hidden, table, np.array([1, 2]), item_block=100)
    with pytest.raises(ValueError, match="shapes do not fit"):
        catalogue_ranks(hidden, table, np.array([1, 2, 3]))
    with pytest.raises(ValueError, match="top_k is 6, the catalogue has 5 items"):
        count_catalogue(hidden, table, np.array([1, 2]), top_k=6)
    counts = count_scores(np.ones((2, 6)), np.array([1, 2]))
    with pytest.raises(ValueError, match="ties"):
        counts.ranks(ties="optimistic")
    with pytest.raises(ValueError, match="filter_seen"):
        counts.ranks("some")
