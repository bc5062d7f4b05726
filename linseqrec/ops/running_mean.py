"""The running mean of a history, segment-aware and streaming.

Axes: B batch, T time, D width.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from linseqrec.ops.linear_attention import (
    Implementation,
    LinearAttentionState,
    linear_attention,
)


def running_mean(
    x: Float[Array, "B T D"],
    *,
    segment_ids: Int[Array, "B T"],
    initial_state: LinearAttentionState | None = None,
) -> tuple[Float[Array, "B T D"], LinearAttentionState]:
    """The mean of each segment's events up to and including t.

    It is linear attention whose queries and keys are the number 1: the sum of the values over the
    sum of ones. A segment's sums never meet another's, so that nothing cancels.

    Args:
      x: [B, T, D], any float dtype.
      segment_ids: [B, T], 0 = padding.
      initial_state: The state before the row's first segment; None is no past.

    Returns:
      mean: [B, T, D] float32 (float64 for float64 inputs); 0 at padding.
      state: The sum [B, 1, 1, D] and the count [B, 1, 1] of the row's last segment.
    """
    # XLA's form everywhere. The Triton kernels multiply by at least 32 key columns, of which 31
    # would be padding, and they take at most 128 value columns.
    implementation: Implementation = "recurrent" if x.shape[1] == 1 else "chunked"
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    ones = jnp.ones_like(wide, shape=(*x.shape[:2], 1, 1))
    mean, state = linear_attention(
        ones,
        ones,
        wide[:, :, None],
        segment_ids=segment_ids,
        epsilon=0.0,
        initial_state=initial_state,
        implementation=implementation,
    )
    return mean[:, :, 0], state
