"""An empty state costs nothing, and is the same as zeros that are not known to be zeros."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linseqrec.layers.states import (
    MixerTrace,
    behind_recent,
    empty,
    empty_recent,
    past_or_none,
    record,
    recording,
)


def test_only_zeros_of_numpy_are_known_to_be_no_past():
    assert past_or_none((empty(2, 3), empty(2, dtype=np.int32))) is None
    assert past_or_none(()) is None
    for past in (jnp.zeros((2, 3)), np.ones((2, 3)), (empty(2), jnp.zeros(2))):
        assert past_or_none(past) is past


@pytest.mark.parametrize("known", [True, False])
def test_a_row_stands_behind_a_cache_only_where_one_may_hold_something(known):
    values, ids = jnp.arange(8.0).reshape(2, 4), jnp.array([[0, 1, 1, 2], [1, 1, 0, 0]])
    recent = empty_recent(2, empty(2, 3))
    recent = recent if known else jax.tree.map(jnp.asarray, recent)
    seen, seen_ids, after = behind_recent(values, ids, recent, 3)
    assert seen.shape == seen_ids.shape == ((2, 4) if known else (2, 7))
    assert sorted(seen[seen_ids > 0].tolist()) == sorted(values[ids > 0].tolist())
    np.testing.assert_array_equal(after.length, [1, 2])
    np.testing.assert_array_equal(after.values, [[0, 0, 3], [0, 4, 5]])


def test_a_trace_is_made_only_where_one_is_recorded():
    mixer = nnx.Module()
    trace = MixerTrace(jnp.zeros((1, 1, 1, 1)), jnp.zeros((1, 1, 1, 1)))
    record(mixer, lambda: pytest.fail("made without a recording"))
    with recording() as passes:
        record(mixer, lambda: trace)
    assert passes == [(mixer, trace)]
    record(mixer, lambda: pytest.fail("made after the recording"))
