"""Ranks equal their definition, computed item by item in float64, for any block size."""

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
    """The mean (or worst) place of the target over all sorted orders of its row of scores.

    A seen target has no place among the unseen items: its rank is infinite.
    """
    ranks = []
    for row, target in enumerate(targets):
        removed = {0} | (set() if seen is None else set(seen[row].tolist()))
        if target in removed:
            ranks.append(np.inf)
            continue
        ids = np.array(sorted(set(range(scores.shape[1])) - removed))
        values = np.sort(scores[row, ids])[::-1]
        places = np.flatnonzero(values == scores[row, target]) + 1
        ranks.append(places.mean() if ties == "mean" else places.max())
    return np.array(ranks, np.float64)


def score_ranks(scores, targets):
    """Ranks of the targets from their rows of scores."""
    return count_scores(scores, targets).fetch().ranks()


def integer_case(rows=37, items=150, width=5, seed=0):
    """Vectors of small integers: every dot product is exact in float32, and many scores tie."""
    rng = np.random.default_rng(seed)
    hidden = rng.integers(-2, 3, (rows, width)).astype(np.float32)
    table = rng.integers(-2, 3, (items + 1, width)).astype(np.float32)
    table[0] = 9.0  # padding would rank first in nearly every row if it were a candidate
    targets = rng.integers(1, items + 1, rows)
    seen = rng.integers(0, items + 1, (rows, 60))
    seen[::3, 7] = targets[::3]  # every third user has seen the target
    return hidden, table, targets, seen


@pytest.mark.parametrize("ties", ["mean", "pessimistic"])
@pytest.mark.parametrize("item_block", [64, 128, 8192])
@pytest.mark.parametrize("filtered", [False, True], ids=["all items", "unseen items"])
def test_ranks_equal_the_definition(filtered, item_block, ties):
    hidden, table, targets, seen = integer_case()
    seen = seen if filtered else None
    scores = hidden.astype(np.float64) @ table.T.astype(np.float64)
    expected = slow_ranks(scores, targets, seen, ties)
    assert (
        expected[np.isfinite(expected)] % 1 != 0
    ).any() or ties == "pessimistic"  # there are ties
    ranks = catalogue_ranks(hidden, table, targets, seen, ties=ties, item_block=item_block)
    np.testing.assert_array_equal(ranks, expected)
    counts = count_scores(scores, targets, seen).fetch()
    np.testing.assert_array_equal(counts.ranks("all" if filtered else "none", ties), expected)


def test_one_count_gives_ranks_for_both_filters():
    hidden, table, targets, seen = integer_case()
    scores = hidden.astype(np.float64) @ table.T
    counts = count_catalogue(hidden, table, targets, seen, item_block=64).fetch()
    np.testing.assert_array_equal(counts.ranks("none"), slow_ranks(scores, targets))
    np.testing.assert_array_equal(counts.ranks("all"), slow_ranks(scores, targets, seen))
    distinct = [len(set(row.tolist()) - {0, int(t)}) for row, t in zip(seen, targets, strict=True)]
    np.testing.assert_array_equal(counts.seen, distinct)
    dense = count_scores(scores, targets, seen)
    for name in ("greater", "equal", "seen", "seen_greater", "seen_equal", "target_seen"):
        np.testing.assert_array_equal(getattr(counts, name), getattr(dense, name), err_msg=name)


@pytest.mark.parametrize("width", [50, 256])
def test_batch_size_and_item_block_do_not_change_ranks(width):
    rng = np.random.default_rng(width)
    rows, items = 90, 1000
    hidden = rng.normal(size=(rows, width)).astype(np.float32)
    table = rng.normal(size=(items + 1, width)).astype(np.float32)
    targets = rng.integers(1, items + 1, rows)
    # Each block has items that differ from a target by one rounding. If a block size changed the
    # last bit of a score, a rank would change.
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
        results = (
            np.concatenate([part.target_score for part in parts]),
            np.concatenate([part.ranks() for part in parts]),
            np.concatenate([part.top for part in parts]),
        )
        reference = reference or results
        for result, expected in zip(results, reference, strict=True):
            np.testing.assert_array_equal(result, expected, err_msg=f"{batch} rows, {block} items")


@pytest.mark.parametrize(("item_block", "loops"), [(64, True), (128, False)])
def test_one_block_of_items_needs_no_loop(item_block, loops):
    """Its end would be data, which an accelerator has to send to the host."""
    count = functools.partial(
        count_catalogue, targets=np.array([1, 99]), item_block=item_block, top_k=3
    )
    program = jax.make_jaxpr(count)(jnp.ones((2, 4)), jnp.ones((100, 4)))
    assert ("while[" in str(program)) == loops


def test_identical_items_of_different_blocks_tie():
    rng = np.random.default_rng(1)
    hidden = rng.normal(size=(16, 50)).astype(np.float32)
    table = np.tile(rng.normal(size=50).astype(np.float32), (1001, 1))
    for block in (64, 448, 8192):
        ranks = catalogue_ranks(hidden, table, rng.integers(1, 1001, 16), item_block=block)
        np.testing.assert_array_equal(ranks, np.full(16, 1 + 999 / 2))


def test_constant_scores_rank_every_target_in_the_middle():
    targets = np.arange(1, 101)
    for ranks in (
        catalogue_ranks(np.ones((100, 4), np.float32), np.ones((101, 4), np.float32), targets),
        score_ranks(np.zeros((100, 101)), targets),
    ):
        metrics, _ = rank_metrics(ranks)
        assert metrics["HR@10"] == metrics["NDCG@10"] == 0.0
        assert metrics["HR@100"] == 1.0


def test_a_target_that_ties_across_the_tenth_place_is_no_hit_at_10():
    scores = np.zeros((3, 21))
    scores[:, 1:10] = 2.0  # nine items above the target
    scores[0, 10:12] = 1.0  # target and another item share places 10 and 11
    scores[1, 10] = 1.0  # target alone on place 10
    scores[2, 10:13] = 1.0
    scores[2, 9] = 1.0  # target and three other items share places 9 to 12
    ranks = score_ranks(scores, np.array([10, 10, 10]))
    np.testing.assert_array_equal(ranks, [10.5, 10.0, 10.5])
    assert rank_metrics(ranks)[0]["HR@10"] == pytest.approx(1 / 3)


def test_float32_vectors_give_the_ranks_of_float64():
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
    hidden64, table64 = (np.asarray(x).astype(np.float64) for x in (hidden, table))
    ranks = catalogue_ranks(hidden, table, targets)
    np.testing.assert_array_equal(ranks, slow_ranks(hidden64 @ table64.T, targets))
    # Scores in bfloat16 would change many ranks.
    rounded = np.asarray((hidden @ table.T).astype(jnp.float32)).astype(np.float64)
    assert (slow_ranks(rounded, targets) != ranks).mean() > 0.2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinite_scores_are_errors(bad):
    hidden, table, targets, _ = integer_case(rows=20)
    hidden[[4, 11]] = bad
    with pytest.raises(NonFiniteScoreError, match="for rows 4, 11, .*divergence") as caught:
        catalogue_ranks(hidden, table, targets)
    np.testing.assert_array_equal(caught.value.rows, [4, 11])
    scores = np.zeros((5, 8))
    scores[3, 5] = bad
    with pytest.raises(NonFiniteScoreError, match="for rows 3"):
        score_ranks(scores, np.ones(5, int))
    with pytest.raises(NonFiniteScoreError, match="for users 103"):
        count_scores(scores, np.ones(5, int)).fetch("users", lambda rows: rows + 100)


def test_one_nan_item_is_an_error_in_any_block_but_not_at_padding():
    hidden, table, targets, _ = integer_case()
    table[0] = np.nan
    expected = slow_ranks(hidden.astype(np.float64) @ np.nan_to_num(table).T, targets)
    np.testing.assert_array_equal(catalogue_ranks(hidden, table, targets), expected)
    table[150] = np.nan
    with pytest.raises(NonFiniteScoreError, match="and 27 more"):
        catalogue_ranks(hidden, table, targets, item_block=64)


@pytest.mark.parametrize("item_block", [64, 192, 8192])
def test_lists_contain_the_best_items_and_the_best_unseen_items(item_block):
    hidden, table, targets, seen = integer_case()
    scores = hidden.astype(np.float64) @ table.T.astype(np.float64)
    counts = count_catalogue(hidden, table, targets, seen, item_block=item_block, top_k=12).fetch()
    dense = count_scores(scores, targets, seen, top_k=12)
    for row in range(len(targets)):
        best = sorted(range(1, scores.shape[1]), key=lambda item: (-scores[row, item], item))
        unseen = [item for item in best if item not in seen[row]]
        for result in (counts, dense):
            np.testing.assert_array_equal(result.top[row], best[:12])
            np.testing.assert_array_equal(result.top_unseen[row], unseen[:12])


def test_a_list_longer_than_the_unseen_items_ends_in_zeros():
    hidden, table = np.ones((1, 2), np.float32), np.ones((6, 2), np.float32)
    targets, seen = np.array([2]), np.array([[1, 3, 5, 2]])
    for counts in (
        count_catalogue(hidden, table, targets, seen, top_k=5).fetch(),
        count_scores(hidden @ table.T, targets, seen, top_k=5),
    ):
        np.testing.assert_array_equal(counts.top, [[1, 2, 3, 4, 5]])
        np.testing.assert_array_equal(counts.top_unseen, [[4, 0, 0, 0, 0]])


def test_invalid_arguments_are_errors():
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
    with pytest.raises(ValueError, match="top_k is 6, but the catalogue has 5 items"):
        count_catalogue(hidden, table, np.array([1, 2]), top_k=6)
    counts = count_scores(np.ones((2, 6)), np.array([1, 2]))
    with pytest.raises(ValueError, match="ties"):
        counts.ranks(ties="optimistic")
    with pytest.raises(ValueError, match="filter_seen"):
        counts.ranks("some")
