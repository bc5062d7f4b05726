"""Dropout and stochastic depth: what is zeroed, how often, and what the rest is scaled by."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linseqrec.layers.dropout import drop_path, dropout, split_key

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


def test_drop_path_drops_rows_and_keeps_the_mean():
    x = jnp.ones((4_000, 3, 2))
    y = np.asarray(drop_path(x, 0.2, KEY))
    assert (y == y[:, :1, :1]).all()
    np.testing.assert_allclose(np.unique(y), [0, 1.25])
    assert abs(y.mean() - 1) < 4 * 1.25 * np.sqrt(0.16 / 4_000)


@pytest.mark.parametrize("drop", [dropout, drop_path])
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
