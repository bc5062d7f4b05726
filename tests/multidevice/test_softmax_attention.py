"""Attention over a batch that is divided over devices."""

import jax
import numpy as np

from linseqrec.ops.softmax_attention import softmax_attention
from tests.multidevice.test_gated_delta_rule import mesh_of, spec


def test_a_divided_batch_is_attended_to_where_it_stands():
    """In two spans of a window of 4, with the gradient: no device asks another for anything."""
    rows = jax.sharding.NamedSharding(mesh_of(data=4), spec("data"))
    random = np.random.default_rng(0)
    inputs = [random.normal(size=(8, 40, 2, 6)).astype(np.float32) for _ in range(3)]
    ids = np.ones((8, 40), np.int32)

    def gradient(query, key, value, ids):
        attended = lambda *x: softmax_attention(*x, window=4, segment_ids=ids, block_size=4)  # noqa: E731
        return jax.vjp(attended, query, key, value)[1](value)

    divided = jax.jit(gradient, in_shardings=(rows,) * 4, out_shardings=rows)
    program = divided.lower(*inputs, ids).compile().as_text()
    assert not [name for name in ("all-gather", "all-to-all", "permute") if name in program]
    for parts, whole in zip(divided(*inputs, ids), jax.jit(gradient)(*inputs, ids), strict=True):
        np.testing.assert_allclose(parts, whole, atol=1e-5)
