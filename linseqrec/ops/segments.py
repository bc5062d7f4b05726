"""Segments of a row as runs: what every segment-aware operation derives its masks from.

Axes: B batch, T time.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Shaped


def segment_runs(segment_ids: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Numbers the segments of each row 1, 2, ... in order of appearance.

    Padding carries the number of the segment before it (1 where none is), so that numbers never
    decrease along a row, two slots are of one segment exactly where their numbers are equal, and
    the row's first segment, to which a carried state belongs, is always number 1. Whether a slot is
    real remains `segment_ids > 0`.

    Args:
      segment_ids: [B, T]; 0 is padding, a new positive id starts a new segment.

    Returns:
      [B, T] int32, from 1, non-decreasing along T.
    """
    slots = jnp.arange(segment_ids.shape[1], dtype=jnp.int32)
    last_event = jax.lax.cummax(jnp.where(segment_ids > 0, slots, 0), axis=1)
    filled = jnp.take_along_axis(segment_ids, last_event, axis=1, mode="clip")
    before, after = filled[:, :-1], filled[:, 1:]
    starts = jnp.pad((before > 0) & (after != before), ((0, 0), (1, 0)), constant_values=True)
    return jnp.cumsum(starts, axis=1, dtype=jnp.int32)


def at_last_event(
    values: Shaped[Array, "B T"], segment_ids: Int[Array, "B T"], otherwise: Shaped[Array, "B"]
) -> Shaped[Array, "B"]:
    """The value at each row's last event.

    Args:
      values: [B, T].
      segment_ids: [B, T], 0 = padding.
      otherwise: [B], what a row without events has.

    Returns:
      [B], in the values' dtype.
    """
    slots = jnp.arange(segment_ids.shape[1])
    last = jnp.max(jnp.where(segment_ids > 0, slots, -1), axis=1)
    found = jnp.take_along_axis(values, jnp.maximum(last, 0)[:, None], axis=1)[:, 0]
    return jnp.where(last < 0, otherwise, found)


def keep(where: Bool[Array, "..."], x: Array) -> Array:
    """The array where its leading axes say so, else 0, whatever stands there.

    Args:
      where: [...], the leading axes of x, or all of them.
      x: [..., ...].

    Returns:
      An array like x.
    """
    return jnp.where(where.reshape(*where.shape, *(1,) * (x.ndim - where.ndim)), x, 0)
