"""The paired bootstrap: against a plain resampling loop, and its coverage."""

import dataclasses

import numpy as np
import pytest

from linseqrec.evaluation import significance
from linseqrec.evaluation.significance import over_seeds, paired_bootstrap


def test_the_interval_is_that_of_resampling_users_one_by_one():
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(60), rng.integers(1, 6, 60))
    first = rng.random(len(users)) + rng.random(60)[users]
    second = rng.random(len(users))
    result = paired_bootstrap(first, second, users, samples=20_000, confidence=0.9)
    assert (result.users, result.confidence) == (60, 0.9)
    assert result.difference == pytest.approx(np.mean(first - second), abs=1e-12)
    means = []
    for _ in range(4000):
        rows = np.concatenate([np.flatnonzero(users == u) for u in rng.integers(0, 60, 60)])
        means.append(np.mean(first[rows] - second[rows]))
    spread = np.std(means)
    np.testing.assert_allclose(
        [result.low, result.high], np.percentile(means, [5, 95]), atol=0.12 * spread
    )


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    held = 0
    for seed in range(300):
        hits = rng.random(400) < 0.3
        other = np.where(rng.random(400) < 0.4, hits, rng.random(400) < 0.3)
        result = paired_bootstrap(hits, other, samples=1000, seed=seed)
        held += result.low <= 0 <= result.high
    assert 0.91 < held / 300 < 0.98


def test_targets_of_one_user_are_no_independent_evidence():
    rng = np.random.default_rng(2)
    users = np.repeat(np.arange(40), 25)
    first = np.repeat(rng.normal(size=40), 25)
    by_user = paired_bootstrap(first, np.zeros(1000), users, samples=2000)
    by_target = paired_bootstrap(first, np.zeros(1000), samples=2000)
    ratio = (by_user.high - by_user.low) / (by_target.high - by_target.low)
    assert ratio == pytest.approx(5, rel=0.1)


def test_one_user_proves_nothing():
    alone = paired_bootstrap([0.5, 1.0], [0.0, 0.5], np.array([7, 7]))
    assert alone.difference == 0.5 and alone.p_value == 1
    assert np.isnan(alone.low) and np.isnan(alone.high)


def test_what_seeds_may_explain_is_student_s_t_times_their_error():
    first, second = np.array([0.3, 0.1, 0.2]), np.array([0.4, 0.6, 0.5])
    error, margin = over_seeds(first, second)
    assert error == pytest.approx((0.01 / 3 + 0.01 / 3) ** 0.5)
    # Of two samples with one variance and size, Welch's degrees of freedom are 2 (n - 1) = 4.
    assert margin == pytest.approx(2.869 * error, rel=1e-3)
    # Two degrees of freedom, and a system without seeds.
    error, margin = over_seeds(first, np.empty(0))
    assert margin == pytest.approx(4.527 * error, rel=1e-3)
    assert over_seeds(first[:1], second) == (None, pytest.approx(margin))
    assert over_seeds(first[:1]) == (None, 0)


def test_equal_systems_differ_by_nothing_and_seeds_repeat():
    values = np.random.default_rng(3).random(50)
    same = paired_bootstrap(values, values)
    assert (same.difference, same.low, same.high) == (0, 0, 0)
    assert same.p_value == 1
    better = paired_bootstrap(values + 0.1, values)
    assert better.low == pytest.approx(0.1)
    other = values[::-1]
    assert paired_bootstrap(values, other) == paired_bootstrap(values, other)
    assert paired_bootstrap(values, other) != paired_bootstrap(values, other, seed=1)


def test_the_p_value_is_the_share_of_resamplings_beyond_zero():
    rng = np.random.default_rng(4)
    first, second = rng.random(80) + 0.06, rng.random(80)
    result = paired_bootstrap(first, second, samples=20_000)
    assert 0.02 < result.p_value < 0.5
    means = (first - second)[rng.integers(0, 80, (20_000, 80))].mean(1)
    # Four standard errors of twice a share of 20,000.
    spread = 2 * np.sqrt(result.p_value / 2 / 20_000)
    assert result.p_value == pytest.approx(2 * np.mean(means < 0), abs=4 * spread)
    assert paired_bootstrap(second, first, samples=20_000).p_value == pytest.approx(
        result.p_value, abs=4 * spread
    )
    assert paired_bootstrap(first + 9, second, samples=99).p_value == 2 / 100


def test_drawing_in_blocks_changes_nothing(monkeypatch):
    rng = np.random.default_rng(5)
    first, second = rng.random((2, 50))
    whole = paired_bootstrap(first, second, samples=1000)
    monkeypatch.setattr(significance, "_BLOCK", 50 * 7)
    blocks = paired_bootstrap(first, second, samples=1000)
    # But for the rounding of sums taken in another order.
    assert dataclasses.astuple(blocks) == pytest.approx(dataclasses.astuple(whole), rel=1e-12)


def test_what_cannot_be_paired_is_refused():
    for first, second, users in (
        (np.ones(3), np.ones(1), None),
        (np.ones(3), np.ones(3), np.ones(2)),
        (np.ones(0), np.ones(0), None),
    ):
        with pytest.raises(ValueError, match="must share their targets"):
            paired_bootstrap(first, second, users)
    with pytest.raises(ValueError, match="confidence"):
        paired_bootstrap(np.ones(3), np.ones(3), confidence=95)
