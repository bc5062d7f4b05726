"""A row's last events, carried to the next call: what windows over time need to stream.

Axes: B batch, T time, P carried slots.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from linseqrec.ops.segments import segment_runs


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Past:
    """The last slots of each row's history.

    Attributes:
      values: [B, P, ...], oldest first; 0 in the slots from before the history's start.
      length: int32 [B], how many of them, the last ones, are events.
    """

    values: Float[Array, "B P ..."]
    length: Int[Array, "B"]


def no_past(x: Float[Array, "B T ..."], slots: int) -> Past:
    """A past without events, of `slots` slots, for rows like x."""
    return Past(
        jnp.zeros_like(x, shape=(x.shape[0], slots, *x.shape[2:])),
        jnp.zeros_like(x, shape=x.shape[:1], dtype=jnp.int32),
    )


def extend(
    x: Float[Array, "B T ..."], segment_ids: Int[Array, "B T"], past: Past
) -> tuple[Float[Array, "B P+T ..."], Int[Array, "B P+T"]]:
    """Puts each row's past right before its first event, behind any padding on its left.

    Args:
      x: The rows.
      segment_ids: One id from 1 per segment; 0 is padding.
      past: What came before the first segment of each row.

    Returns:
      The rows, P slots longer at their front, and their segment ids, where the past is of the first
      segment. Padding is 0 in both.
    """
    slots = past.values.shape[1]
    real = segment_ids > 0
    first = jnp.argmax(real, axis=1)
    first_id = jnp.maximum(jnp.take_along_axis(segment_ids, first[:, None], axis=1), 1)
    carried = jnp.arange(slots) >= slots - past.length[:, None]
    ids = jnp.pad(segment_ids, ((0, 0), (slots, 0)))
    ids = _put(ids, jnp.where(carried, first_id, 0).astype(ids.dtype), first)
    x = jnp.where(real.reshape(*real.shape, *(1,) * (x.ndim - 2)), x, 0)
    x = jnp.pad(x, ((0, 0), (slots, 0), *((0, 0),) * (x.ndim - 2)))
    return _put(x, past.values.astype(x.dtype), first), ids


def last_slots(x: Float[Array, "B S ..."], segment_ids: Int[Array, "B S"], slots: int) -> Past:
    """The past after rows that `extend` made: the last `slots` slots of each row's last segment.

    A row without events returns the past it was extended by.
    """
    time = x.shape[1] - slots
    row = segment_ids[:, slots:] > 0
    after_last = jnp.max(jnp.where(row, jnp.arange(1, time + 1), 0), axis=1)
    cut = jax.vmap(jax.lax.dynamic_slice_in_dim, (0, 0, None, None))
    runs = segment_runs(segment_ids)
    of_last = cut((segment_ids > 0) & (runs == runs[:, -1:]), after_last, slots, 0)
    values = cut(x, after_last, slots, 0)
    values = jnp.where(of_last.reshape(*of_last.shape, *(1,) * (x.ndim - 2)), values, 0)
    return Past(values, jnp.sum(of_last, axis=1, dtype=jnp.int32))


def _put(x: Array, values: Array, start: Int[Array, "B"]) -> Array:
    """Writes each row's values into its row of x, from its own start."""
    return jax.vmap(jax.lax.dynamic_update_slice_in_dim, (0, 0, 0, None))(x, values, start, 0)
