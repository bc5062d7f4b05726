import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linseqrec.layers.time_gaps import Clock
from linseqrec.layers.window_attention import TimedWindowAttention

WIDTH, HEADS, LENGTH = 8, 2, 16


@pytest.mark.parametrize("neighbours", [1, 63])
def test_years_of_neighbours_in_a_packed_row_round_nothing_away(neighbours):
    attention = TimedWindowAttention(
        WIDTH, HEADS, window=LENGTH, dtype=jnp.float32, rngs=nnx.Rngs(0)
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
    def last_history(params, x, ids, positions, gaps):
        clock, state = Clock(ids, positions, gaps, 0 * gaps), attention.initial_state(1)
        output = nnx.merge(graphdef, params)(x, clock, state)[0][:, -LENGTH:]
        return (output * weights).sum(), output

    step = jax.grad(last_history, has_aux=True)
    packed, output = step(params, x, ids, positions, gaps)
    alone, expected = step(params, *(array[:, -LENGTH:] for array in (x, ids, positions, gaps)))
    np.testing.assert_allclose(output, expected, atol=1e-6)
    np.testing.assert_allclose(packed.log_horizon[...], alone.log_horizon[...], rtol=1e-4)


@pytest.mark.parametrize("days", [1.0, 0.01])
def test_years_of_a_history_round_nothing_away(days):
    """Events a minute apart, behind one of ten years ago: as where that one never was.

    It has faded, but as a number of float32 days it would leave 21 s to tell minutes by.
    """
    attention = TimedWindowAttention(
        WIDTH, HEADS, window=LENGTH, dtype=jnp.float32, rngs=nnx.Rngs(0)
    )
    attention.log_horizon[...] = jnp.log(jnp.array([days, 3 * days]))
    graphdef, params = nnx.split(attention)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, LENGTH, WIDTH)).astype(np.float32)
    gaps = np.full((1, LENGTH), 1 / 1440, np.float32)
    gaps[0, :2] = 0, 3650
    weights = rng.normal(size=(1, LENGTH - 1, WIDTH))

    @jax.jit
    def after_the_first(params, x, ids, positions, gaps):
        clock, state = Clock(ids, positions, gaps, 0 * gaps), attention.initial_state(1)
        output = nnx.merge(graphdef, params)(x, clock, state)[0]
        return (output[:, -(LENGTH - 1) :] * weights).sum(), output[:, -(LENGTH - 1) :]

    step = jax.grad(after_the_first, has_aux=True)
    row = x, np.ones((1, LENGTH), np.int32), np.arange(LENGTH)[None], gaps
    slope, output = step(params, *row)
    without, expected = step(params, *(array[:, 1:] for array in row))
    np.testing.assert_allclose(output, expected, atol=1e-6)
    np.testing.assert_allclose(slope.log_horizon[...], without.log_horizon[...], rtol=1e-4)
