"""Segments of a row as runs: what every segment-aware operation derives its masks from.

Axes: B batch, T time.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int


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
    filled = jax.lax.associative_scan(
        lambda earlier, later: jnp.where(later > 0, later, earlier), segment_ids, axis=1
    )
    before, after = filled[:, :-1], filled[:, 1:]
    starts = (before > 0) & (after != before)
    starts = jnp.concatenate([jnp.ones_like(starts, shape=(starts.shape[0], 1)), starts], axis=1)
    return jnp.cumsum(starts, axis=1, dtype=jnp.int32)
