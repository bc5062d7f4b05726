"""Dropout and stochastic depth: what is zeroed, how often, and what the rest is scaled by."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linseqrec.layers.standard import drop_path, dropout, split_key

KEY = jax.random.key(0)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_zeroes_at_its_rate_and_scales_the_rest(rate):
    x = np.random.default_rng(0).normal(size=(40, 50, 20)).astype(np.float32)
    y = np.asarray(dropout(jnp.asarray(x), rate, KEY))
    np.testing.assert_allclose(y[y != 0], x[y != 0] / (1 - rate), rtol=1e-6)
    error = 4 * np.sqrt(rate * (1 - rate) / x.size)
    assert abs((y == 0).mean() - rate) < error
    # Entry by entry: no axis is dropped together.
    for axis in range(3):
        spread = (y == 0).mean(axis=axis).std() ** 2
        np.testing.assert_allclose(spread, rate * (1 - rate) / x.shape[axis], rtol=0.2)


def test_the_highest_rates_drop_nearly_all():
    """The rate is rounded to 16 bits, and must not be rounded to none."""
    kept = np.count_nonzero(dropout(jnp.ones(10_000), 0.999999, KEY))
    assert kept <= 5


def test_drop_path_drops_segments_and_keeps_the_mean():
    segments = np.tile(np.array([1, 1, 1, 2, 2, 3, 0, 0]), (4_000, 1))
    x = jnp.ones((4_000, 8, 2))
    y = np.asarray(drop_path(x, 0.2, jnp.asarray(segments), KEY))
    np.testing.assert_allclose(np.unique(y), [0, 1.25])
    kept = []
    for segment in (1, 2, 3):
        inside = y[:, segments[0] == segment]
        assert (inside == inside[:, :1, :1]).all()
        kept.append(inside[:, 0, 0] > 0)
        assert abs(inside.mean() - 1) < 4 * 1.25 * np.sqrt(0.16 / 4_000)
    # Independent of each other: correlations of 4,000 pairs are below 4 / sqrt(4,000).
    assert np.abs(np.corrcoef(kept) - np.eye(3)).max() < 4 / np.sqrt(4_000)


def test_drop_path_is_the_same_wherever_a_segment_ends():
    """A segment's draw follows from its number: neither its length nor padding moves it."""
    one = jnp.asarray(np.repeat([[1, 2, 3, 4, 0, 0, 0, 0]], 64, 0))
    other = jnp.asarray(np.repeat([[1, 1, 1, 2, 3, 3, 4, 0]], 64, 0))
    x = jnp.ones((64, 8, 1))
    first, second = (drop_path(x, 0.5, segments, KEY)[..., 0] for segments in (one, other))
    np.testing.assert_array_equal(first[:, [0, 1, 2, 3]], second[:, [2, 3, 5, 6]])
    # The released RecGRELA has one segment a row, whose padding it reads.
    np.testing.assert_array_equal(first[:, 0], first[:, 7])


def drop_paths(x, rate, key):
    return drop_path(x, rate, jnp.ones(x.shape[:2], jnp.int32), key)


@pytest.mark.parametrize("drop", [dropout, drop_paths])
def test_noise_is_the_keys_and_none_in_evaluation(drop):
    x = jnp.ones((64, 4, 8), jnp.bfloat16)
    noisy = drop(x, 0.5, KEY)
    assert noisy.dtype == x.dtype
    np.testing.assert_array_equal(noisy, drop(x, 0.5, KEY))
    assert (noisy != drop(x, 0.5, jax.random.key(1))).any()
    assert drop(x, 0.5, None) is x
    assert drop(x, 0.0, KEY) is x


def test_a_dropped_value_passes_nothing_on():
    """Neither its value, be it infinite, nor a gradient."""
    x = jnp.full((8, 4, 8), jnp.inf)
    y, gradient = dropout(x, 0.5, KEY), jax.grad(lambda x: dropout(x, 0.5, KEY).sum())(x)
    assert set(np.unique(y)) == {0, np.inf}
    np.testing.assert_array_equal(gradient, np.where(y == 0, 0, 2))


def test_keys_split_into_different_ones_and_none_into_nones():
    keys = split_key(KEY, 3)
    assert len({jax.random.key_data(key).tobytes() for key in [KEY, *keys]}) == 4
    assert split_key(None, 3) == [None] * 3
