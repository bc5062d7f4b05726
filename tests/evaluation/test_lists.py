"""Lists equal a sort of all scores, and their targets' ranks equal the evaluator's."""

import numpy as np
import polars as pl
import pytest

from linseqrec.data.dataset import Dataset
from linseqrec.data.splits import leave_one_out
from linseqrec.evaluation import queries
from linseqrec.evaluation.evaluator import Evaluator
from linseqrec.evaluation.lists import (
    Lists,
    for_spreadsheets,
    lists_table,
    recommend_after,
)
from linseqrec.evaluation.metrics import rank_metrics
from linseqrec.evaluation.ranks import NonFiniteScoreError
from tests.evaluation.test_evaluator import (
    ITEMS,
    TABLE,
    encode,
    make_dataset,
    make_long_dataset,
    slow_evaluation,
    with_names,
)


@pytest.mark.parametrize("filter_seen", [False, True], ids=["all items", "unseen items"])
def test_lists_equal_a_sort_and_ranks_equal_the_evaluator(filter_seen):
    dataset = make_dataset()
    targets = leave_one_out(dataset).test
    order = np.random.default_rng(3).permutation(len(targets))
    users, ends = targets.users[order], targets.positions[order]
    lists = recommend_after(
        dataset,
        users,
        ends,
        encode,
        TABLE,
        top_k=60,
        max_length=20,
        batch_size=8,
        filter_seen=filter_seen,
        rank_next=True,
    )
    scores, seen = slow_evaluation(dataset, targets, 20)
    for row, (own, items) in enumerate(zip(scores[order], (seen[i] for i in order), strict=True)):
        best = np.argsort(-own[1:], kind="stable") + 1
        best = [item for item in best if not filter_seen or item not in items][:60]
        padding = [0] * (60 - len(best))
        np.testing.assert_array_equal(lists.items[row], best + padding)
        np.testing.assert_array_equal(lists.scores[row, : len(best)], own[best])
        assert np.isneginf(lists.scores[row, len(best) :]).all()
    name = "all" if filter_seen else "none"
    evaluation = Evaluator(dataset, targets, max_length=20, filter_seen=name)
    ranks = evaluation.run(encode, TABLE).ranks[name]
    np.testing.assert_array_equal(lists.target_ranks, ranks[order])


@pytest.mark.parametrize("filter_seen", [False, True], ids=["all items", "unseen items"])
def test_metrics_of_exported_lists_equal_those_of_the_ranks(filter_seen):
    """By membership in the list, on a log where people repeat."""
    dataset = make_dataset()
    targets = leave_one_out(dataset).test
    # Real numbers do not tie, so a target's place in the list is its rank.
    table = np.random.default_rng(5).normal(size=TABLE.shape).astype(np.float32)
    lists = recommend_after(
        dataset,
        targets.users,
        targets.positions,
        encode,
        table,
        top_k=50,
        max_length=20,
        filter_seen=filter_seen,
        rank_next=True,
    )
    users, items = np.arange(dataset.num_users), np.arange(ITEMS + 1)
    exported = lists_table(lists, dataset, targets.users, targets.positions, users, items)
    by_membership = {
        f"{name}@{k}": exported.filter(pl.col("item") == pl.col("target"), pl.col("rank") <= k)
        .select(gain)
        .sum()
        .item()
        / len(targets)
        for k in (1, 5, 10, 20, 50)
        for name, gain in (
            ("HR", pl.col("rank") ** 0),
            ("NDCG", 1 / (pl.col("rank") + 1).log(2)),
            ("MRR", 1 / pl.col("rank")),
        )
    }
    name = "all" if filter_seen else "none"
    result = Evaluator(dataset, targets, max_length=20, filter_seen=("none", "all")).run(
        encode, table
    )
    assert 0.3 < result.target_seen.mean() < 0.7
    for metric, value in by_membership.items():
        assert result.metrics_by_filter[name][metric] == pytest.approx(value, abs=1e-12), metric
    ranks = exported.unique("user", maintain_order=True)["target_rank"].to_numpy()
    assert rank_metrics(ranks)[0]["HR@50"] == pytest.approx(by_membership["HR@50"])


def test_one_long_history_widens_no_batch_of_lists(monkeypatch):
    dataset = make_long_dataset()
    targets = leave_one_out(dataset).test
    items_before, shapes = queries.items_before, []

    def record(*arguments):
        seen = items_before(*arguments)
        shapes.append(seen.shape)
        return seen

    def recommend():
        return recommend_after(
            dataset,
            targets.users,
            targets.positions,
            encode,
            TABLE,
            top_k=20,
            max_length=20,
            batch_size=16,
            filter_seen=True,
            rank_next=True,
        )

    expected = recommend()
    monkeypatch.setattr(queries, "items_before", record)
    monkeypatch.setattr(queries, "NUMBERS_AT_ONCE", 2_000)
    lists = recommend()
    assert all(rows == 1 or rows * width <= 2_000 for rows, width in shapes), shapes
    for field in ("items", "scores", "target_ranks"):
        np.testing.assert_array_equal(getattr(lists, field), getattr(expected, field))


def test_lists_after_all_events_have_no_target_rank():
    dataset = make_dataset(users=5)
    users = np.arange(5)
    settings = {"top_k": 3, "max_length": 30, "batch_size": 2}
    lists = recommend_after(dataset, users, dataset.offsets[1:], encode, TABLE, **settings)
    assert lists.target_ranks is None
    grown = Dataset.from_arrays(
        np.insert(dataset.items, dataset.offsets[1:], 1),
        np.insert(dataset.timestamps, dataset.offsets[1:], dataset.timestamps.max()),
        dataset.offsets + np.arange(6),
        num_items=ITEMS,
    )
    test = leave_one_out(grown).test
    again = recommend_after(grown, test.users, test.positions, encode, TABLE, **settings)
    np.testing.assert_array_equal(lists.items, again.items)


def test_nan_scores_and_a_table_of_another_catalogue_are_errors(tmp_path):
    dataset = with_names(make_dataset(users=5), tmp_path / "set")
    users, ends = np.arange(5), dataset.offsets[1:]
    settings = {"top_k": 3, "max_length": 30, "batch_size": 2}
    broken = TABLE.copy()
    broken[7] = np.nan
    with pytest.raises(NonFiniteScoreError, match="for users 4, which"):
        recommend_after(dataset, users[:1], ends[:1], encode, broken, **settings)
    with pytest.raises(ValueError, match="table has 90 rows, but .* of 90 items needs 91"):
        recommend_after(dataset, users, ends, encode, TABLE[:-1], **settings)


def test_the_table_has_a_row_for_the_target_of_an_empty_list():
    dataset = Dataset.from_arrays([1, 2, 2, 1, 2], [0, 1, 2, 0, 1], [0, 3, 5], num_items=2)
    lists = Lists(
        items=np.array([[0, 0], [2, 0]], np.int32),
        scores=np.array([[-np.inf, -np.inf], [0.5, -np.inf]], np.float32),
        target_ranks=np.array([1.0, 1.5]),
    )
    users, ends = np.array([0, 1]), np.array([2, 4])
    ids = np.array(["ann", "bob"]), np.array(["", "x", "y"])
    assert lists_table(lists, dataset, users, ends, *ids).rows() == [
        ("ann", None, None, None, 2, "y", 1.0),
        ("bob", 1, "y", 0.5, 1, "y", 1.5),
    ]


def test_texts_that_a_spreadsheet_would_run_are_marked():
    run = ["=1+1", "+49 30", "-", "@SUM(1)", "\t=1", "'=1", "＝1"]
    shown = ["", "a=1", "-1", "+2.5e3", "'a", "u-1", None]
    table = pl.DataFrame({"user": run + shown, "rank": range(-7, 7)})
    marked = for_spreadsheets(table)
    assert marked["user"].to_list() == [f"'{text}" for text in run] + shown
    assert marked.columns == table.columns and marked["rank"].to_list() == list(range(-7, 7))
