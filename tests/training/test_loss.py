"""The four prediction losses equal their formulas on a small batch."""

import dataclasses

import jax
import numpy as np
import pytest

from linseqrec.config_fields import ConfigError
from linseqrec.training.loss import LossConfig, make_loss

# The full loss has no negatives.
NONE = np.zeros(0, np.int32)


@pytest.fixture
def case(experiment, make_run):
    """Hidden vectors, an item table, a batch of the small log, and the log's item counts."""
    run = make_run(experiment)
    batch = run.batches[0]
    rng = np.random.default_rng(1)
    hidden = rng.normal(size=(*batch.targets.shape, 6)).astype(np.float32)
    table = rng.normal(size=(25, 6)).astype(np.float32)
    return hidden, table, batch, run.item_counts


def drawn(loss, case, key):
    """A loss with the negatives that it draws by its key."""
    hidden, table, batch, _ = case
    return float(loss(hidden, table, batch, loss.draw(key, batch.targets.shape)))


def cross_entropies(hidden, table, batch):
    """The cross-entropy at every slot, in float64."""
    scores = hidden.astype(np.float64) @ table[1:].astype(np.float64).T
    own = np.take_along_axis(scores, np.maximum(batch.targets - 1, 0)[..., None], -1)[..., 0]
    return np.log(np.exp(scores).sum(-1)) - own


def test_the_full_loss_is_the_weighted_sum_of_cross_entropies(case):
    hidden, table, batch, counts = case
    loss = make_loss(LossConfig(), counts)(hidden, table, batch, NONE)
    expected = (cross_entropies(hidden, table, batch) * batch.weights).sum()
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_the_loss_reads_the_slots_in_read_at(case):
    hidden, table, batch, counts = case
    slots = np.argmax(batch.weights, axis=1)[:, None].astype(np.int32) + 1
    one_target_per_row = dataclasses.replace(
        batch,
        targets=np.take_along_axis(batch.targets, slots, 1),
        weights=np.ones(slots.shape, np.float32),
        read_at=slots,
    )
    loss = make_loss(LossConfig(), counts)(hidden, table, one_target_per_row, NONE)
    expected = np.take_along_axis(cross_entropies(hidden, table, batch), slots, 1).sum()
    assert float(loss) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("power", [0.0, 1.0], ids=["uniform", "by popularity"])
def test_the_sampled_loss_of_many_negatives_approaches_the_full_loss(case, power):
    hidden, table, batch, counts = case
    config = LossConfig(kind="sampled", negatives=20_000, popularity_power=power)
    full = make_loss(LossConfig(), counts)(hidden, table, batch, NONE)
    loss = drawn(make_loss(config, counts), case, jax.random.key(0))
    assert float(loss) == pytest.approx(float(full), rel=2e-2)


def test_gbce_draws_no_more_than_the_other_items(case):
    counts = case[3]
    make_loss(LossConfig(kind="gbce", negatives=23), counts)
    with pytest.raises(ConfigError, match="loss.negatives is 24: loss.kind=gbce takes at most 23"):
        make_loss(LossConfig(kind="gbce", negatives=24), counts)


@pytest.mark.parametrize("power", [1e4, -1e4])
def test_a_power_of_popularity_that_gives_no_distribution_is_refused(power):
    with pytest.raises(
        ConfigError, match=rf"loss.popularity_power is {power}: counts to the power"
    ):
        make_loss(LossConfig(kind="sampled", popularity_power=power), np.full(25, 9))
    with pytest.raises(ConfigError, match="calibration is 5.0: it must be a probability"):
        LossConfig(calibration=5.0)


def test_bce_draws_by_its_key_and_gbce_adds_the_calibration(case):
    hidden, table, batch, counts = case
    key = jax.random.key(0)
    bce = make_loss(LossConfig(kind="bce", negatives=4), counts)
    bce_loss = drawn(bce, case, key)
    assert bce_loss != drawn(bce, case, jax.random.key(1))
    without = LossConfig(kind="gbce", negatives=4, calibration=0.0)
    assert drawn(make_loss(without, counts), case, key) == pytest.approx(bce_loss)
    full = dataclasses.replace(without, calibration=1.0)
    # With t = 1 the positive term of BCE is multiplied by S / (N - 1) = 4 / 23.
    scores = (hidden.astype(np.float64) * table[batch.targets]).sum(-1)
    difference = (1 - 4 / 23) * np.log1p(np.exp(-scores)) / 5
    expected = bce_loss - (difference * batch.weights).sum()
    assert drawn(make_loss(full, counts), case, key) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("items", "kind"), [(50_000, "full"), (50_001, "sampled")], ids=["small", "large"]
)
def test_auto_draws_items_of_a_large_catalogue(items, kind):
    loss = make_loss(LossConfig(kind="auto", negatives=7), np.zeros(items + 1, np.int64))
    assert loss.config == LossConfig(kind=kind, negatives=7)
    assert ("7 drawn items of 50,001 a batch" in loss.title) == (kind == "sampled")
