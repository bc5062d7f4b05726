"""Softmax attention over a window, with rotary positions, that streams."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from linseqrec.layers.dense import dense
from linseqrec.ops.recent import Recent, after_recent, last_slots
from linseqrec.ops.rotary import rotary
from linseqrec.ops.softmax_attention import softmax_attention


class RotaryAttention(nnx.Module):
    """Causal multi-head attention over the last `window` events of each history.

        q, k, v = split(W_qkv x + b_qkv);  q, k = R(q), R(k)      per head
        y = W_o softmax(q kᵀ / √K) v + b_o

    What it carries are the keys and values of the last `window - 1` events: a short window makes it
    the recent past's layer, a window as long as the histories makes it full causal attention with a
    cache of fixed capacity. A row that a window does not cut is computed as without one.
    """

    def __init__(self, width: int, heads: int, *, window: int, dtype: jnp.dtype, rngs: nnx.Rngs):
        """Args: `window` is how many events one sees, itself included."""
        self.heads, self.window = heads, window
        self.query_key_value = dense(width, 3 * width, dtype=dtype, rngs=rngs)
        self.output = dense(width, width, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        state: Recent | None = None,
    ) -> tuple[Float[Array, "B T D"], Recent]:
        """Mixes a row's events over time.

        Args:
          x: Normalised inputs.
          segment_ids: One id from 1 per history; 0 is padding.
          positions: Positions for the rotation; a carried history's go on.
          state: Keys (rotated) and values [B, window - 1, H, K] of the last events before each
            row's first segment; None is no past.

        Returns:
          The mixed values, and the state after each row's last segment.
        """
        shape = (*x.shape[:2], self.heads, x.shape[2] // self.heads)
        query, key, value = (
            part.reshape(shape) for part in jnp.split(self.query_key_value(x), 3, axis=-1)
        )
        query, key = rotary(query, positions), rotary(key, positions)
        kept = self.window - 1
        past, past_ids = after_recent((key, value), segment_ids, state, kept)
        # Without a past the row is attended to as it stands, not behind an empty cache.
        (keys, values), ids = ((key, value), segment_ids) if state is None else (past, past_ids)
        mixed = softmax_attention(query, keys, values, window=self.window, segment_ids=ids)
        return self.output(mixed.reshape(x.shape)), last_slots(past, past_ids, kept)
