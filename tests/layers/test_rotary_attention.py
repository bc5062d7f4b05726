import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linseqrec.layers.rotary_attention import RotaryAttention

WIDTH, HEADS, LENGTH = 8, 2, 16


@pytest.mark.parametrize("neighbours", [1, 63])
def test_years_of_neighbours_in_a_packed_row_round_nothing_away(neighbours):
    attention = RotaryAttention(
        WIDTH, HEADS, window=LENGTH, timed=True, dtype=jnp.float32, rngs=nnx.Rngs(0)
    )
    attention.log_horizon[...] = jnp.log(jnp.array([1.0, 30.0]))
    graphdef, params = nnx.split(attention)
    rng = np.random.default_rng(0)
    total = (neighbours + 1) * LENGTH
    x = rng.normal(size=(1, total, WIDTH)).astype(np.float32)
    # Ten years a neighbour; the last history's events are a month's.
    gaps = np.full((1, total), 3650 / LENGTH, np.float32)
    gaps[:, -LENGTH:] = rng.gamma(0.3, 5.0, LENGTH)
    gaps[:, ::LENGTH] = 0
    ids = np.repeat(np.arange(1, neighbours + 2), LENGTH)[None]
    positions = np.tile(np.arange(LENGTH), neighbours + 1)[None]
    weights = rng.normal(size=(1, LENGTH, WIDTH))

    @jax.jit
    def last_history(params, *row):
        output = nnx.merge(graphdef, params)(*row)[0][:, -LENGTH:]
        return (output * weights).sum(), output

    step = jax.grad(last_history, has_aux=True)
    packed, output = step(params, x, ids, positions, gaps)
    alone, expected = step(params, *(array[:, -LENGTH:] for array in (x, ids, positions, gaps)))
    np.testing.assert_allclose(output, expected, atol=1e-6)
    np.testing.assert_allclose(packed.log_horizon[...], alone.log_horizon[...], rtol=1e-4)
