import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linseqrec.ops.triangular import inverse_unit_lower
from tests.ops.closeness import assert_close, relative_rms


def systems(rows, kind, seed=0):
    """Two strictly lower matrices as the delta rule makes them: inner products of unit keys."""
    random = np.random.default_rng(seed)
    keys = random.normal(size=(2, rows, 24))
    if kind == "clustered":
        keys = 0.1 * keys + random.normal(size=(2, 1, 24))
    if kind == "few":
        keys = keys[:, random.integers(0, min(rows, 5), rows)]
    keys /= np.linalg.norm(keys, axis=-1, keepdims=True)
    return np.tril(keys @ keys.swapaxes(1, 2), -1)


@pytest.mark.parametrize("kind", ["random", "clustered", "few"])
@pytest.mark.parametrize("rows", [1, 2, 15, 16, 17, 32, 48, 50, 64, 100, 128])
def test_equals_the_float64_inverse(rows, kind):
    lower = systems(rows, kind)
    actual = jax.jit(inverse_unit_lower)(lower.astype(np.float32))
    expected = np.linalg.inv(np.eye(rows) + lower.astype(np.float32))
    assert relative_rms(actual, expected) < 2e-6
    assert np.all(np.triu(actual, 1) == 0)


@pytest.mark.parametrize("rows", [3, 16, 40])
def test_the_gradient_is_that_of_the_inverse(rows):
    """Against finite differences in float64 along random directions."""
    random = np.random.default_rng(1)
    lower, weights = systems(rows, "random"), random.normal(size=(2, rows, rows))

    def value(lower):
        return np.sum(weights * np.linalg.inv(np.eye(rows) + lower))

    with jax.enable_x64(True):
        gradient = jax.jit(jax.grad(lambda x: jnp.sum(weights * inverse_unit_lower(x))))(lower)
        assert np.all(np.triu(gradient) == 0)
        for _ in range(3):
            direction = 1e-6 * np.tril(random.normal(size=lower.shape), -1)
            change = (value(lower + direction) - value(lower - direction)) / 2
            assert_close(np.sum(gradient * direction), change, 1e-6)
