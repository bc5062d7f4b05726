"""Learned positions and fixed sinusoids."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linseqrec.layers.standard import PositionEmbedding, sinusoidal_positions


@pytest.fixture
def learned():
    return PositionEmbedding(6, 4, dtype=jnp.dtype("bfloat16"), rngs=nnx.Rngs(0))


def at(learned, positions):
    return learned(jnp.zeros((*positions.shape, 4), jnp.bfloat16), positions)


def test_a_position_is_its_row_wherever_it_stands(learned):
    positions = jnp.array([[0, 1, 2, 0, 1, 5]])
    table = np.asarray(learned.table[...])
    assert table.shape == (6, 4) and table.dtype == np.float32
    np.testing.assert_array_equal(
        at(learned, positions), jnp.asarray(table[np.asarray(positions)], jnp.bfloat16)
    )


def test_a_row_longer_than_the_table_is_refused(learned):
    with pytest.raises(ValueError, match="rows of 7 slots, but only 6 positions were learned"):
        at(learned, jnp.zeros((1, 7), jnp.int32))


def test_a_position_past_the_end_is_not_taken_for_the_last(learned):
    """A history carried on too far cannot be refused under `jit`; it must not pass for right."""
    assert np.isnan(at(learned, jnp.array([[5, 6]]))[0, 1].astype(jnp.float32)).all()
    assert np.isfinite(at(learned, jnp.array([[5, 6]]))[0, 0].astype(jnp.float32)).all()


def test_sinusoids_are_their_formula():
    positions = np.array([[0, 1, 7, 199], [3, 0, 0, 1_000]])
    expected = np.zeros((2, 4, 8))
    for i in range(4):
        angle = positions / 10_000 ** (2 * i / 8)
        expected[..., i], expected[..., 4 + i] = np.sin(angle), np.cos(angle)
    np.testing.assert_allclose(sinusoidal_positions(positions, 8), expected, atol=1e-4)
