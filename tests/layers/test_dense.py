"""What the shared dense layer and norm promise of their dtypes."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linseqrec.layers.standard import Dense, layer_norm


def test_a_dense_layer_keeps_float32_parameters_and_computes_in_its_dtype():
    layer = Dense(6, 3, dtype=jnp.dtype("bfloat16"), rngs=nnx.Rngs(0))
    assert layer.kernel[...].dtype == layer.bias[...].dtype == jnp.float32
    assert layer(jnp.ones((2, 6))).dtype == jnp.bfloat16


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_norms_statistics_are_float32(dtype):
    """Features far from 0: rounded statistics, or E[x²] − E[x]², would lose their spread."""
    norm = layer_norm(64, epsilon=1e-12, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0))
    offset = 1_000 if dtype == "float32" else 100
    x = jnp.asarray(offset + np.random.default_rng(0).normal(size=(5, 64)), dtype)
    y = norm(x)
    assert y.dtype == dtype
    exact = np.asarray(x, np.float64)
    expected = (exact - exact.mean(-1, keepdims=True)) / exact.std(-1, keepdims=True)
    atol = 2e-4 if dtype == "float32" else 0.02
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, atol=atol)
