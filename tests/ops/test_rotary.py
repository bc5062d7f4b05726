import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linseqrec.ops.rotary import rotary
from tests.ops.closeness import assert_close


def by_complex_numbers(x, positions, base=10_000.0):
    """The definition in float64: feature pairs are complex numbers, turned by position * theta."""
    x = np.asarray(x, np.float64)
    half = x.shape[-1] // 2
    theta = base ** -(np.arange(half) / half)
    angle = np.asarray(positions)[..., None] * theta
    angle = angle.reshape(*positions.shape, *(1,) * (x.ndim - 3), half)
    turned = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angle)
    return np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape)


def random_input(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(2, 5, 64), (2, 5, 4, 16), (1, 1, 2), (2, 3, 2, 3, 6)], ids=str)
@pytest.mark.parametrize("base", [10_000.0, 100.0, 1.0])
def test_equals_the_definition(shape, base):
    x, positions = random_input(*shape), np.random.default_rng(1).integers(0, 200, shape[:2])
    assert_close(rotary(x, positions, base=base), by_complex_numbers(x, positions, base), 6e-7)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-(2**20), 2**20), min_size=7, max_size=7))
def test_angles_are_exact_at_far_positions(positions):
    """float32 angles as position * theta would be off by 3e-3 at 1e5, which this refuses."""
    x, positions = random_input(1, 7, 64), np.array([positions])
    assert_close(jax.jit(rotary)(x, positions), by_complex_numbers(x, positions), 6e-7)


def test_inner_products_depend_on_the_distance_only():
    query, key = random_input(1, 1, 64), random_input(1, 1, 64, seed=1)

    def score(m, n):
        return np.sum(rotary(query, np.array([[m]])) * rotary(key, np.array([[n]])))

    for shift in (1, 1000, 100_000):
        assert_close(score(7 + shift, 3 + shift), score(7, 3), 1e-5)
    assert abs(score(8, 3) - score(7, 3)) > 0.1


def test_full_width_and_heads_are_two_different_ladders():
    x, positions = random_input(1, 3, 32), np.array([[0, 5, 9]])
    full = rotary(x, positions).reshape(1, 3, 4, 8)
    heads = rotary(x.reshape(1, 3, 4, 8), positions)
    np.testing.assert_array_equal(full[:, 0], x.reshape(1, 3, 4, 8)[:, 0])  # position 0: no turn
    assert_close(full[..., 0, :2], heads[..., 0, :2], 1e-6)  # both start with theta = 1
    assert np.max(np.abs(full[:, 1:, 3] - heads[:, 1:, 3])) > 0.5


def test_gradient_turns_back():
    x, weights = random_input(2, 5, 4, 8), random_input(2, 5, 4, 8, seed=1)
    positions = np.random.default_rng(2).integers(0, 100_000, (2, 5))
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(weights * rotary(x, positions))))(x)
    assert_close(gradient, by_complex_numbers(weights, -positions), 6e-7)


def test_bfloat16():
    x = jnp.asarray(random_input(2, 5, 64), jnp.bfloat16)
    positions = np.array([[0, 1, 2, 99_999, 100_000], [5, 4, 3, 2, 1]])
    turned = rotary(x, positions)
    assert turned.dtype == jnp.bfloat16
    assert_close(turned, by_complex_numbers(x.astype(np.float32), positions), 4e-3)


def test_vmap_and_padding():
    """Rows and slots are on their own, a NaN stays in its slot."""
    x, positions = random_input(3, 2, 5, 8), np.arange(10).reshape(2, 5)
    one_by_one = np.stack([rotary(row, positions) for row in x])
    np.testing.assert_array_equal(jax.vmap(rotary, (0, None))(x, positions), one_by_one)
    x[:, :, 0] = np.nan
    np.testing.assert_array_equal(rotary(x[0], positions)[:, 1:], one_by_one[0, :, 1:])


@pytest.mark.usefixtures("without_type_checks")
def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="even"):
        rotary(random_input(1, 2, 3), np.zeros((1, 2), int))
    with pytest.raises(ValueError, match="positions"):
        rotary(random_input(1, 2, 4), np.zeros((2,), int))
