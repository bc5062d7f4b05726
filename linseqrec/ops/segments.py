"""Rows of slots: their segments, and how they are cut into chunks.

Segment-aware operations derive their masks from `segment_runs`. Operations that take a chunk of
time at once cut rows with `cut` and `to_chunks`.

Axes: B batch, T time, C chunk, N chunks.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Shaped

# The most numbers that an operation makes at once: on a CPU, where they are to stay in cache, and
# on accelerators, where they are to fit into memory.
_CACHED, _AT_ONCE = 2_000_000, 100_000_000
# Slots in the tiles of matrix units.
_TILE = 16


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


def run_starts(runs: Int[Array, "B T"]) -> Bool[Array, "B T"]:
    """Where a row's second segment and each later one begins.

    Args:
      runs: [B, T], from `segment_runs`.

    Returns:
      bool [B, T].
    """
    return jnp.diff(runs, axis=1, prepend=jnp.ones_like(runs[:, :1])) > 0


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


class Cut(NamedTuple):
    """How a row is cut: groups of chunks, and chunks of slots.

    Attributes:
      groups: Groups in a row, taken one after the other.
      chunks: Chunks in a group, taken at once.
      size: Slots in a chunk.
    """

    groups: int
    chunks: int
    size: int

    @property
    def length(self) -> int:
        """Slots in a row that is cut so, at least T."""
        return self.groups * self.chunks * self.size


def cut(time: int, chunk_size: int, numbers: int) -> Cut:
    """Cuts rows into the fewest equal chunks, and these into groups that the backend takes at once.

    Args:
      time: T.
      chunk_size: The most slots in a chunk, rounded up to whole tiles on accelerators.
      numbers: How many the operation makes of one chunk of all rows and heads.

    Returns:
      The cut; its chunks are as many as are needed, or a few more, so that groups are equal.
    """
    count = max(1, -(-time // chunk_size))
    if jax.default_backend() == "cpu":
        # All at once while it is in cache; else chunk by chunk, each in cache.
        group, tile = (count if count * numbers <= _CACHED else 1), 1
    else:
        group, tile = max(1, _AT_ONCE // numbers), _TILE
    groups = -(-count // group)
    chunks = -(-count // groups)
    size = -(-time // (groups * chunks))
    return Cut(groups, chunks, -(-size // tile) * tile)


def fill(x: Array, length: int, mode: str = "constant") -> Array:
    """Lengthens rows [B, T, ...] to `length` slots.

    Args:
      x: [B, T, ...].
      length: At least T.
      mode: What the new slots hold: zeros ("constant") or what the last slot holds ("edge").

    Returns:
      [B, length, ...].
    """
    if length == x.shape[1]:
        return x
    ahead = ((0, 0), (0, length - x.shape[1]), *((0, 0),) * (x.ndim - 2))
    return jnp.pad(x, ahead, mode=mode)


def to_chunks(x: Array, chunk_size: int, mode: str = "constant") -> Shaped[Array, "N B C ..."]:
    """Cuts rows [B, T, ...] into the fewest equal chunks of at most `chunk_size` slots.

    The last is filled as `fill` does in this mode.
    """
    count = max(1, -(-x.shape[1] // chunk_size))
    size = -(-x.shape[1] // count)
    x = fill(x, size * count, mode)
    return jnp.moveaxis(x.reshape(x.shape[0], count, size, *x.shape[2:]), 1, 0)


def runs_to_chunks(runs: Int[Array, "B T"], chunk_size: int) -> Int[Array, "N B C"]:
    """Cuts `segment_runs`; the slots that fill up the last chunk go on with the row's last run."""
    return to_chunks(runs, chunk_size, "edge")


def from_chunks(x: Shaped[Array, "N B C ..."], time: int) -> Array:
    """Joins chunks into [B, T, ...] again, without what filled up the last one."""
    x = jnp.moveaxis(x, 0, 1)
    return jax.lax.collapse(x, 1, 3)[:, :time]
