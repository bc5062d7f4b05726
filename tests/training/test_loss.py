import dataclasses

import jax
import numpy as np
import pytest

from linseqrec.training.loss import LossConfig, make_loss


@pytest.fixture
def case(experiment, make_run):
    """Hidden states, a table and a batch of the small log."""
    run = make_run(experiment)
    batch = run.batches[0]
    rng = np.random.default_rng(1)
    hidden = rng.normal(size=(*batch.targets.shape, 6)).astype(np.float32)
    table = rng.normal(size=(25, 6)).astype(np.float32)
    return hidden, table, batch, run.item_counts


def likelihoods(hidden, table, batch):
    """Negative log-likelihood at every slot, float64."""
    scores = hidden.astype(np.float64) @ table[1:].astype(np.float64).T
    own = np.take_along_axis(scores, np.maximum(batch.targets - 1, 0)[..., None], -1)[..., 0]
    return np.log(np.exp(scores).sum(-1)) - own


def test_full_is_the_weighted_sum_over_targets(case):
    hidden, table, batch, counts = case
    loss = make_loss(LossConfig(), counts)(hidden, table, batch, jax.random.key(0))
    expected = (likelihoods(hidden, table, batch) * batch.weights).sum()
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_predictions_are_read_where_the_batch_says(case):
    hidden, table, batch, counts = case
    slots = np.argmax(batch.weights, axis=1)[:, None].astype(np.int32) + 1
    picked = dataclasses.replace(
        batch,
        targets=np.take_along_axis(batch.targets, slots, 1),
        weights=np.ones(slots.shape, np.float32),
        read_at=slots,
    )
    loss = make_loss(LossConfig(), counts)(hidden, table, picked, jax.random.key(0))
    expected = np.take_along_axis(likelihoods(hidden, table, batch), slots, 1).sum()
    assert float(loss) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_sampled_approaches_the_full_loss(case, power):
    """Many draws estimate the partition function well, whatever they are drawn by."""
    hidden, table, batch, counts = case
    config = LossConfig(kind="sampled", negatives=20_000, popularity_power=power)
    full = make_loss(LossConfig(), counts)(hidden, table, batch, jax.random.key(0))
    loss = make_loss(config, counts)(hidden, table, batch, jax.random.key(0))
    assert float(loss) == pytest.approx(float(full), rel=2e-2)


def test_bce_draws_for_each_target_and_gbce_calibrates(case):
    hidden, table, batch, counts = case
    key = jax.random.key(0)
    bce = make_loss(LossConfig(kind="bce", negatives=4), counts)
    one, other = bce(hidden, table, batch, key), bce(hidden, table, batch, jax.random.key(1))
    assert float(one) != float(other)
    plain = LossConfig(kind="gbce", negatives=4, calibration=0.0)
    assert float(make_loss(plain, counts)(hidden, table, batch, key)) == pytest.approx(float(one))
    full = dataclasses.replace(plain, calibration=1.0)
    scores = (hidden.astype(np.float64) * table[batch.targets]).sum(-1)
    saved = (1 - 4 / 23) * np.log1p(np.exp(-scores)) / 5
    expected = float(one) - (saved * batch.weights).sum()
    assert float(make_loss(full, counts)(hidden, table, batch, key)) == pytest.approx(expected)
