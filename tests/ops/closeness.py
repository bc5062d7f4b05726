"""The measures of every numeric test of an operation."""

import jax
import jax.numpy as jnp
import numpy as np


def assert_close(actual, expected, tolerance: float) -> None:
    """All of `actual` lies within `tolerance * max(|expected|)` of `expected`."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    allowed = tolerance * max(np.max(np.abs(expected), initial=0), 1e-30)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=allowed)


def relative_rms(actual, expected) -> float:
    """Root-mean-square error as a share of the root mean square expected."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    return float(np.linalg.norm(actual - expected) / max(np.linalg.norm(expected), 1e-30))


def projected(outputs):
    """A random projection of all outputs to one number, so that every cotangent is its own."""
    total = 0.0
    for seed, array in enumerate(jax.tree.leaves(outputs)):
        weights = np.random.default_rng(seed).normal(size=array.shape)
        total += jnp.sum(array.astype(jnp.promote_types(array.dtype, jnp.float32)) * weights)
    return total
