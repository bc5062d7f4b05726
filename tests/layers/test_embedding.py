"""The item table: look-ups, and the padding row that learns nothing from them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linseqrec.layers.standard import ItemEmbedding

ITEMS = jnp.array([[0, 3, 1, 3], [2, 0, 0, 5]])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_look_up_is_the_items_row_in_the_compute_dtype(dtype):
    embedding = ItemEmbedding(5, 4, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0))
    table = np.asarray(embedding.table[...])
    assert table.shape == (6, 4) and table.dtype == np.float32
    assert (np.abs(table).max(axis=1) > 0).all()
    rows = embedding(ITEMS)
    assert rows.dtype == dtype
    np.testing.assert_array_equal(rows, jnp.asarray(table[np.asarray(ITEMS)], dtype))


def test_rows_collect_the_gradients_of_their_look_ups_but_for_padding():
    embedding = ItemEmbedding(5, 4, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))
    weights = np.random.default_rng(0).normal(size=(2, 4, 4)).astype(np.float32)

    graphdef, params = nnx.split(embedding)

    def read(params):
        return (nnx.merge(graphdef, params)(ITEMS) * weights).sum()

    expected = np.zeros((6, 4), np.float32)
    np.add.at(expected, np.asarray(ITEMS), weights)
    expected[0] = 0
    [gradient] = jax.tree.leaves(jax.grad(read)(params))
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)
