"""Metrics equal their definitions, computed in loops over targets in float64."""

import math

import numpy as np
import pytest

from linseqrec.evaluation import metrics


def test_metrics_and_standard_errors_equal_their_definitions():
    ranks = [1.0, 2.0, 2.5, 5.0, 5.5, 10.0, 10.5, 11.0, 480.0, 501.0]
    means, errors = metrics.rank_metrics(np.array(ranks))
    assert set(means) == {
        f"{name}@{k}" for name in ("HR", "NDCG", "MRR") for k in (1, 5, 10, 20, 50, 100, 200, 500)
    }
    for k in (1, 5, 10, 20, 50, 100, 200, 500):
        for name, gain in (
            ("HR", lambda rank: 1.0),
            ("NDCG", lambda rank: math.log(2) / math.log(1 + rank)),
            ("MRR", lambda rank: 1 / rank),
        ):
            values = [gain(rank) if rank <= k else 0.0 for rank in ranks]
            mean = sum(values) / len(values)
            variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
            assert means[f"{name}@{k}"] == pytest.approx(mean, abs=1e-15)
            assert errors[f"{name}@{k}"] == pytest.approx(math.sqrt(variance / len(values)))
    assert means["HR@10"] == 0.6  # 10.5 is no hit
    with pytest.raises(ValueError, match="no targets"):
        metrics.rank_metrics(np.array([]))
    assert math.isnan(metrics.rank_metrics(np.array([1.0]))[1]["HR@1"])


def test_users_with_several_targets_are_drawn_with_all_of_them():
    """The error is that of the mean over users where all have as many targets, which are alike."""
    by_user = np.array([1.0, 4.0, 20.0, 7.0, 300.0])
    users = np.array([3, 0, 7, 2, 9])
    means, errors = metrics.rank_metrics(by_user)
    order = np.random.default_rng(0).permutation(20)
    ranks, owners = np.repeat(by_user, 4)[order], np.repeat(users, 4)[order]
    same, clustered = metrics.rank_metrics(ranks, users=owners)
    assert same == pytest.approx(means) and clustered == pytest.approx(errors)
    assert metrics.rank_metrics(ranks)[1]["HR@10"] < 0.6 * errors["HR@10"]
    (bucket,) = metrics.bucket_metrics(ranks, np.zeros(20), (0,), users=owners)
    assert bucket["standard_errors"] == pytest.approx(errors)
    assert math.isnan(metrics.mean_and_error(np.arange(3.0), np.ones(3))[1])


def test_group_auc_is_the_mean_share_of_candidates_below_the_target():
    rng = np.random.default_rng(0)
    shares, ranks, sizes = [], [], []
    for _ in range(50):
        others = rng.integers(0, 6, rng.integers(1, 40))
        own = rng.integers(0, 6)
        shares.append(np.mean([1.0 if own > x else 0.5 if own == x else 0.0 for x in others]))
        ranks.append(1 + (others > own).sum() + (others == own).sum() / 2)
        sizes.append(1 + len(others))
    auc = metrics.group_auc(np.array(ranks), np.array(sizes))
    assert auc == pytest.approx(np.mean(shares), abs=1e-15)


def test_pooled_auc_is_the_share_of_all_pairs_that_targets_win():
    rng = np.random.default_rng(1)
    targets, others = rng.integers(0, 9, 30) / 7, rng.integers(0, 9, (40, 5)) / 7
    won = [1.0 if t > o else 0.5 if t == o else 0.0 for t in targets for o in others.ravel()]
    auc = metrics.PooledAUC(targets)
    assert math.isnan(auc.value())
    for part in np.array_split(others, 3):
        auc.add(part)
    assert auc.value() == pytest.approx(np.mean(won), abs=1e-15)


def test_coverage_and_popularity_of_the_lists():
    top = np.array([[1, 2, 3], [3, 2, 0], [5, 1, 2]])  # the second list has two items only
    counts = np.array([100, 10, 20, 30, 40, 50])
    values = metrics.list_metrics(top, 8, counts)
    assert values == {"coverage@3": 4 / 8, "popularity@3": (10 + 20 + 30 + 30 + 20 + 50 + 30) / 8}
    assert set(metrics.list_metrics(top, 8)) == {"coverage@3"}


def test_bucket_metrics_average_to_the_metrics_of_all_targets():
    rng = np.random.default_rng(2)
    lengths = np.array([0, 49, 50, 99, 100, 199, 200, 499, 500, 9_999, 50, 1])
    ranks = rng.integers(1, 30, len(lengths)).astype(np.float64)
    records = metrics.bucket_metrics(ranks, lengths)
    assert [record["name"] for record in records] == ["0-49", "50-99", "100-199", "200-499", "500+"]
    assert [record["targets"] for record in records] == [3, 3, 2, 2, 2]
    assert (records[0]["low"], records[0]["high"], records[-1]["high"]) == (0, 49, None)
    np.testing.assert_allclose(
        records[1]["metrics"]["NDCG@10"],
        np.mean([1 / np.log2(1 + ranks[i]) if ranks[i] <= 10 else 0 for i in (2, 3, 10)]),
    )
    overall = metrics.rank_metrics(ranks)[0]["MRR@20"]
    total = sum(record["targets"] * record["metrics"]["MRR@20"] for record in records)
    assert total / len(ranks) == pytest.approx(overall, abs=1e-15)
    empty = metrics.bucket_metrics(ranks, lengths, edges=(0, 20_000))[1]
    assert (empty["targets"], empty["metrics"], empty["standard_errors"]) == (0, {}, {})


def test_targets_without_a_value_are_in_a_bucket_of_their_own_or_in_none():
    rng = np.random.default_rng(2)
    lengths = np.array([0, 49, 50, 99, 100, 199, 200, 499, 500, 9_999, 50, 1])
    ranks = rng.integers(1, 30, len(lengths)).astype(np.float64)
    short = metrics.bucket_metrics(ranks, lengths)[0]
    lengths = np.where(lengths < 50, np.nan, lengths)
    in_no_bucket = metrics.bucket_metrics(ranks, lengths)
    assert [record["targets"] for record in in_no_bucket] == [0, 3, 2, 2, 2]
    buckets = metrics.make_buckets(lengths, without="never")
    *with_value, without_value = [bucket.record(metrics.per_target(ranks)) for bucket in buckets]
    assert with_value == in_no_bucket
    assert without_value["name"] == "never"
    assert (without_value["low"], without_value["high"]) == (None, None)
    assert (without_value["targets"], without_value["metrics"]) == (3, short["metrics"])


@pytest.mark.parametrize("edges", [(), (1, 5), (0, 5, 5), (0, 9, 3)], ids=str)
def test_bucket_edges_that_do_not_ascend_from_0_are_errors(edges):
    with pytest.raises(ValueError, match="ascend from 0"):
        metrics.bucket_metrics(np.ones(2), np.ones(2), edges=edges)


def test_a_name_that_is_no_rank_metric_is_an_error():
    metrics.check_metric("MRR@100")
    for metric in ("AUC", "HR@7", "HR"):
        with pytest.raises(metrics.MetricError, match="there are HR@1, "):
            metrics.check_metric(metric)


def test_length_buckets_go_on_as_far_as_histories_do():
    assert metrics.length_edges(np.array([3, 999])) == metrics.BUCKET_EDGES
    edges = metrics.length_edges(np.array([3, 5_000, 4_999]))
    assert edges == (*metrics.BUCKET_EDGES, 1_000, 2_000, 5_000)
    buckets = metrics.make_buckets(np.array([3, 1_500, 6_000]), edges)
    assert [bucket.name for bucket in buckets[-3:]] == ["1,000-1,999", "2,000-4,999", "5,000+"]
    assert [int(bucket.inside.sum()) for bucket in buckets] == [1, 0, 0, 0, 0, 1, 0, 1]


def test_an_infinite_rank_is_a_miss_at_every_cut_off():
    means, _ = metrics.rank_metrics(np.array([np.inf, 1.0]))
    assert set(means.values()) == {0.5}
    assert metrics.group_auc(np.array([np.inf]), np.array([7])) == 0.0
