"""Losses and ranks over a catalogue split over devices are those of the definitions."""

from functools import partial

import jax
import numpy as np
import pytest

from linseqrec.evaluation.ranks import count_catalogue, count_scores
from linseqrec.ops.cross_entropy import catalogue_cross_entropy
from linseqrec.sharding import MeshConfig, make_mesh
from tests.evaluation.test_ranks import integer_case
from tests.ops.test_cross_entropy import assert_same, definition, example

spec = jax.sharding.PartitionSpec


def padded(table, parts, value):
    """Filled up with rows that would show if they were taken for items."""
    return np.pad(table, ((0, -len(table) % parts), (0, 0)), constant_values=value)


# Of 24 rows and 4 parts: all rows of a part at once, blocks with a short first one, single rows.
@pytest.mark.parametrize(
    ("parts", "items", "block"),
    [(4, 23, None), (2, 23, 5), (4, 4, 1), (2, 24, 1)],
    ids=["one block", "several blocks", "a part without items", "blocks of one item"],
)
def test_cross_entropy_of_a_split_table(parts, items, block):
    """With 4 items one of the 4 devices holds nothing but padding."""
    mesh = make_mesh(MeshConfig(4 // parts, parts))
    arguments = example((4, 7), items)
    table = padded(np.asarray(arguments[1]), parts, 9.0)

    def share(*arguments):
        loss = partial(catalogue_cross_entropy, token_block=8, catalogue_block=block)
        share = loss(*arguments, num_items=items, axis_name="model")
        return jax.lax.psum(share, ("data", "model"))

    rows = spec("data")
    split = jax.shard_map(
        share, mesh=mesh, in_specs=(rows, spec("model"), rows, rows), out_specs=spec()
    )
    actual = jax.jit(jax.value_and_grad(split, argnums=(0, 1, 3)))(
        arguments[0], table, *arguments[2:]
    )
    loss, (hidden, table, weights) = jax.tree.map(np.asarray, actual)
    assert not table[items + 1 :].any()
    assert_same((loss, (hidden, table[: items + 1], weights)), definition(*arguments))


@pytest.mark.parametrize(
    ("parts", "items", "block"),
    [(4, 150, 64), (2, 150, 64), (2, 300, 64), (4, 4, 64)],
    ids=["four parts", "two parts", "several blocks", "a part without items"],
)
def test_ranks_and_lists_of_a_split_table(parts, items, block):
    """Many ties, seen items, short parts, several blocks a part, and a part of padding alone."""
    mesh = make_mesh(MeshConfig(4 // parts, parts))
    hidden, table, targets, seen = integer_case(rows=36, items=items)
    best = min(10, items)
    counts = count_catalogue(
        hidden,
        padded(table, parts, 9.0),
        targets,
        seen,
        item_block=block,
        top_k=best,
        num_items=items,
        mesh=mesh,
    ).fetch()
    scores = hidden.astype(np.float64) @ table.T
    expected = count_scores(scores, targets, seen, top_k=best)
    for one, other in zip(jax.tree.leaves(counts), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_score_that_is_not_finite_is_found_in_any_part():
    hidden, table, targets, _ = integer_case(rows=4)
    table[120] = np.nan
    counts = count_catalogue(
        hidden, padded(table, 4, 9.0), targets, num_items=150, mesh=make_mesh(MeshConfig(1, 4))
    )
    assert not np.asarray(counts.finite).any()
