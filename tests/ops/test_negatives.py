"""Drawn items follow exactly the distribution that `log_q` states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linseqrec.ops.negatives import draw_negatives, popularity_proposal, uniform_proposal

COUNTS = np.array([99, 5, 0, 1, 30, 64])


def test_log_q_is_the_distribution_asked_for():
    cases = [
        (uniform_proposal(5), np.full(5, 1 / 5)),
        (popularity_proposal(COUNTS), np.array([5, 1, 1, 30, 64]) / 101),
        (
            popularity_proposal(COUNTS, 0.5),
            np.sqrt([5, 1, 1, 30, 64]) / np.sqrt([5, 1, 1, 30, 64]).sum(),
        ),
    ]
    for proposal, expected in cases:
        np.testing.assert_allclose(np.exp(proposal.log_q[1:]), expected, rtol=1e-6)
        assert proposal.log_q[0] == -np.inf


def test_draws_follow_log_q():
    number = 40_000
    for proposal in (uniform_proposal(5), popularity_proposal(COUNTS)):
        items = draw_negatives(jax.random.key(0), proposal, (number // 4, 4))
        assert items.shape == (number // 4, 4) and items.dtype == jnp.int32
        seen = np.bincount(np.asarray(items).ravel(), minlength=6)
        probability = np.exp(np.asarray(proposal.log_q, np.float64))
        # Six standard deviations: the key is fixed, so this passes or fails for good.
        allowed = 6 * np.sqrt(number * probability * (1 - probability))
        np.testing.assert_array_less(np.abs(seen - number * probability), allowed + 1e-9)


def test_each_unit_of_probability_belongs_to_one_item(monkeypatch):
    proposal = popularity_proposal(COUNTS)
    edges = np.asarray(proposal.cumulative)
    for unit, items in ((edges[:-1], np.arange(1, 6)), (edges[1:] - 1, np.arange(1, 6))):
        monkeypatch.setattr(jax.random, "randint", lambda *_, unit=unit: jnp.asarray(unit))
        np.testing.assert_array_equal(draw_negatives(jax.random.key(0), proposal, (5,)), items)


def test_the_rarest_of_a_million_items_can_be_drawn():
    counts = np.zeros(1_000_001)
    counts[1] = 1e12
    proposal = popularity_proposal(counts)
    assert np.all(np.diff(np.asarray(proposal.cumulative)) >= 1)
    assert np.isfinite(proposal.log_q[1:]).all()


@pytest.mark.parametrize("counts", [[0.0], [0, -1.0], [0, np.nan], [0, np.inf]])
def test_counts_that_are_none_are_refused(counts):
    with pytest.raises(ValueError, match="counts must be|1 to 2"):
        popularity_proposal(np.array(counts))
