"""Vectors of unit length."""

import jax
import jax.numpy as jnp
import numpy as np

from linseqrec.layers.standard import UnitNorm, unit_length


def test_lengths_are_one_and_nothing_stays_nothing():
    x = np.array([[3.0, 4.0], [0.0, 0.0], [1e-30, 0.0], [0.0, -1e-7]], np.float32)
    expected = [[0.6, 0.8], [0, 0], [0, 0], [0, -1e-4]]
    np.testing.assert_allclose(unit_length(x), expected, atol=1e-6)
    np.testing.assert_allclose(UnitNorm(0.05)(x), np.multiply(expected, 20), atol=2e-5)


def test_the_gradient_is_finite_where_there_is_no_length():
    slopes = jax.grad(lambda x: jnp.sum(unit_length(x)))(jnp.zeros((2, 3)))
    np.testing.assert_allclose(slopes, 1e3, rtol=1e-5)


def test_lengths_of_bfloat16_vectors_are_summed_in_float32():
    x = jnp.ones((1, 4096), jnp.bfloat16)
    assert unit_length(x).dtype == jnp.bfloat16
    np.testing.assert_array_equal(unit_length(x), 1 / 64)
