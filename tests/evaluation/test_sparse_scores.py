"""Counts of sparse scores equal those of the same scores written out."""

import dataclasses

import numpy as np
import pytest

from linseqrec.evaluation.ranks import NonFiniteScoreError, count_scores
from linseqrec.evaluation.sparse_scores import (
    SharedScores,
    SparseScores,
    count,
    distinct,
    weighted_sum,
)

ROWS, ITEMS = 24, 40


def make_scores(seed, *, shared=True, highest=4):
    """Scores of few values, so that many tie; some rows have no exception and some only these."""
    rng = np.random.default_rng(seed)
    row = rng.integers(0, 4, ITEMS + 1) if shared else np.zeros(ITEMS + 1)
    chosen = rng.random((ROWS, ITEMS)) < np.linspace(0, 1, ROWS)[:, None]
    rows, items = np.nonzero(chosen)
    values = rng.integers(-1, highest, len(rows)).astype(np.float64)
    keys = rows * (ITEMS + 1) + items + 1
    return SparseScores(SharedScores(row.astype(np.float64)), ROWS, keys, values)


@pytest.mark.parametrize("shared", [True, False], ids=["shared scores", "zeros"])
@pytest.mark.parametrize("highest", [4, 12])
def test_counts_and_lists_equal_those_of_dense_scores(shared, highest):
    for seed in range(20):
        scores = make_scores(seed, shared=shared, highest=highest)
        rng = np.random.default_rng(100 + seed)
        targets = rng.integers(1, ITEMS + 1, ROWS)
        # From a few seen items in the first rows to nearly all in the last ones.
        seen = rng.integers(1, ITEMS + 1, (ROWS, 90))
        seen[np.arange(90) >= 4 * np.arange(ROWS)[:, None]] = 0
        rows, columns = np.nonzero(seen)
        seen_keys = np.unique(rows * (ITEMS + 1) + seen[rows, columns])
        for padded, keys in ((seen, seen_keys), (None, None)):
            found = count(scores, targets, keys, top_k=10)
            expected = count_scores(scores.dense(), targets, padded, top_k=10)
            for field in dataclasses.fields(expected):
                np.testing.assert_array_equal(
                    getattr(found, field.name), getattr(expected, field.name), err_msg=field.name
                )


def test_a_score_that_is_not_finite_is_an_error_that_names_its_row():
    scores = make_scores(0)
    scores.values[scores.keys // (ITEMS + 1) == 5] = np.nan
    with pytest.raises(NonFiniteScoreError, match="for rows 5, which"):
        count(scores, np.ones(ROWS, int)).fetch()


def test_a_weighted_sum_equals_that_of_dense_scores():
    parts = [(0.5, make_scores(1, shared=False)), (3.0, make_scores(2, shared=False))]
    expected = sum(weight * scores.dense() for weight, scores in parts)
    np.testing.assert_array_equal(weighted_sum(parts).dense(), expected)


@pytest.mark.parametrize("size", [300, 10**9], ids=["flags", "sorted"])
def test_distinct_keys_are_numpys(size):
    keys = np.random.default_rng(0).integers(0, 300, 200)
    for found, expected in zip(
        distinct(keys, size), np.unique(keys, return_inverse=True), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
