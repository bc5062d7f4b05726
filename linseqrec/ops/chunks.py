"""Rows cut into equal chunks, for operations that take a chunk of time at once.

Axes: B batch, T time, C chunk, N chunks.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


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


def to_chunks(x: Array, chunk_size: int, mode: str = "constant") -> Float[Array, "N B C ..."]:
    """Cuts rows [B, T, ...] into the fewest equal chunks of at most `chunk_size` slots.

    The last is filled as `fill` does in this mode.
    """
    count = max(1, -(-x.shape[1] // chunk_size))
    x = fill(x, -(-x.shape[1] // count) * count, mode)
    return jnp.moveaxis(x.reshape(x.shape[0], count, -1, *x.shape[2:]), 1, 0)


def runs_to_chunks(runs: Int[Array, "B T"], chunk_size: int) -> Int[Array, "N B C"]:
    """Cuts `segment_runs`; the slots that fill up the last chunk go on with the row's last run."""
    return to_chunks(runs, chunk_size, "edge")


def from_chunks(x: Float[Array, "N B C ..."], time: int) -> Array:
    """Joins chunks into [B, T, ...] again, without what filled up the last one."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :time]
