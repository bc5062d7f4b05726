"""Rows cut into equal chunks, for operations that take a chunk of time at once.

Axes: B batch, T time, C chunk, N chunks.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def fill_chunks(x: Array, chunk_size: int, mode: str = "constant") -> tuple[Array, int]:
    """Lengthens rows to the fewest equal chunks of at most `chunk_size` slots.

    Args:
      x: [B, T, ...].
      chunk_size: The most slots in a chunk.
      mode: What fills up the last chunk: zeros ("constant") or the last slot ("edge").

    Returns:
      [B, N C, ...], and N.
    """
    time = x.shape[1]
    count = max(1, -(-time // chunk_size))
    filled = -(-time // count) * count
    if filled == time:
        return x, count
    return jnp.pad(x, ((0, 0), (0, filled - time), *((0, 0),) * (x.ndim - 2)), mode=mode), count


def to_chunks(x: Array, chunk_size: int, mode: str = "constant") -> Float[Array, "N B C ..."]:
    """Cuts [B, T, ...] into chunks [N, B, C, ...]; arguments as in `fill_chunks`."""
    x, count = fill_chunks(x, chunk_size, mode)
    return jnp.moveaxis(x.reshape(x.shape[0], count, -1, *x.shape[2:]), 1, 0)


def runs_to_chunks(runs: Int[Array, "B T"], chunk_size: int) -> Int[Array, "N B C"]:
    """Cuts `segment_runs`; the slots that fill up the last chunk go on with the row's last run."""
    return to_chunks(runs, chunk_size, "edge")


def from_chunks(x: Float[Array, "N B C ..."], time: int) -> Array:
    """Joins chunks into [B, T, ...] again, without what filled up the last one."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :time]
