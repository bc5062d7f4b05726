"""Functions that XLA cannot split, on devices with rows of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from linseqrec import sharding
from linseqrec.ops.kernels.triton_choice import rows_apart
from linseqrec.sharding import MeshConfig, make_mesh

ROWS = np.arange(24, dtype=np.float32).reshape(4, 6)


def by_row(x, factor, pair):
    """Results of several forms; what one row gives depends on no other."""
    return {"sums": x.cumsum(axis=1) * factor, "pair": (pair[0][:, 0] - x[:, 0], pair[1])}


@pytest.mark.parametrize(("mesh", "rows"), [(MeshConfig(4, 1), 1), (MeshConfig(2, 2), 2)], ids=str)
def test_each_device_has_its_own_rows(mesh, rows):
    shapes, mesh = [], make_mesh(mesh)

    def function(x, factor, pair):
        shapes.append(x.shape)
        return by_row(x, factor, pair)

    def loss(x, pair, run):
        with sharding.while_tracing(mesh):
            results = run(x)(function)(x, 3.0, pair)
        return sum(jnp.vdot(y, y) for y in jax.tree.leaves(results)), results

    pair = (ROWS[::-1].copy(), None)
    compute = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=2)
    (_, expected), slopes = compute(ROWS, pair, lambda x: lambda function: function)
    shapes.clear()
    placed = jax.device_put((ROWS, pair), NamedSharding(mesh, PartitionSpec("data")))
    (_, results), split_slopes = compute(*placed, rows_apart)
    assert set(shapes) == {(rows, 6)}
    jax.tree.map(np.testing.assert_array_equal, results, expected)
    np.testing.assert_array_equal(split_slopes, slopes)
    assert all(y.sharding.spec[0] == "data" for y in jax.tree.leaves(results))


def test_xla_splits_what_has_no_rows_of_its_own():
    """Without a mesh, where rows do not divide evenly, and where time is split."""
    assert rows_apart(jnp.asarray(ROWS)) is None
    for mesh, rows in ((MeshConfig(4, 1), 6), (MeshConfig(2, 1, 2), 4)):
        with sharding.while_tracing(make_mesh(mesh)):
            assert rows_apart(jnp.zeros((rows, 3))) is None


def test_a_function_in_shard_map_is_left_as_it_is():
    mesh = make_mesh(MeshConfig(4, 1))

    def function(x):
        return rows_apart(x)(lambda y: y + 1)(x)

    rows = PartitionSpec("data")
    with sharding.while_tracing(mesh):
        text = str(jax.make_jaxpr(jax.shard_map(function, in_specs=rows, out_specs=rows))(ROWS))
    assert text.count("shard_map") == 1
