"""Softmax attention over a window, with rotary positions, that streams."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from linseqrec.layers.dense import dense
from linseqrec.layers.time_gaps import SECONDS_A_DAY, initial_log_horizon
from linseqrec.ops.recent import Recent, after_recent, last_slots
from linseqrec.ops.rotary import rotary
from linseqrec.ops.softmax_attention import Fading, softmax_attention


class RotaryAttention(nnx.Module):
    """Causal multi-head attention over the last `window` events of each history.

        q, k, v = split(W_qkv x + b_qkv);  q, k = R(q), R(k)      per head
        y = W_o softmax(q kᵀ / √K) v + b_o

    Timed, an event's weight fades with the days since: softmax(q kᵀ / √K - (t_q - t_k) / T), with
    T = e^c days a head. The factor exp(-(t_q - t_k) / T) on a softmax weight is what a decaying
    memory has on a write (`TADN`); the idea is ours, and ALiBi's with days for
    positions.

    What it carries are the keys and values of the last `window - 1` events: a short window makes it
    the recent past's layer, a window as long as the histories makes it full causal attention with a
    cache of fixed capacity. A row that a window does not cut is computed as without one.

    With `behind`, event t asks the `window` events up to t - behind, at their own positions and
    times; where a history has none so old it reads 0.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        window: int,
        behind: int = 0,
        timed: bool = False,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        """Args: `window` is how many events one sees, the last of them `behind` before it."""
        self.heads, self.window, self.behind = heads, window, behind
        self.query_key_value = dense(width, 3 * width, dtype=dtype, rngs=rngs)
        self.output = dense(width, width, dtype=dtype, rngs=rngs)
        self.log_horizon = nnx.Param(initial_log_horizon(heads, rngs=rngs)) if timed else None

    def __call__(
        self,
        x: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        gaps: Float[Array, "B T"] | None = None,
        state: Recent | None = None,
    ) -> tuple[Float[Array, "B T D"], Recent]:
        """Mixes a row's events over time.

        Args:
          x: Normalised inputs.
          segment_ids: One id from 1 per history; 0 is padding.
          positions: Positions for the rotation; a carried history's go on.
          gaps: Days since the event before, float32; where timed.
          state: Keys (rotated) and values [B, window - 1 + behind, H, K] of the last events before
            each row's first segment and, where timed, their seconds [B, window - 1 + behind]
            relative to the last one; None is no past.

        Returns:
          The mixed values, and the state after each row's last segment.
        """
        shape = (*x.shape[:2], self.heads, x.shape[2] // self.heads)
        query, key, value = (
            part.reshape(shape) for part in jnp.split(self.query_key_value(x), 3, axis=-1)
        )
        query, key = rotary(query, positions), rotary(key, positions)
        kept, own = self.window - 1 + self.behind, [key, value]
        if self.log_horizon is not None:
            assert gaps is not None, "timed attention reads gaps"
            # Seconds of each row's own clock: only differences within a history are read.
            own.append(jnp.cumsum(jnp.round(gaps * SECONDS_A_DAY).astype(jnp.int32), axis=1))
        past, past_ids = after_recent(own, segment_ids, state, kept)
        # Without a past the row is attended to as it stands, not behind an empty cache.
        seen, ids = (own, segment_ids) if state is None else (past, past_ids)
        fading = None
        if self.log_horizon is not None:
            fading = Fading(seen[2], jnp.exp(-self.log_horizon[...]) / SECONDS_A_DAY)
        mixed = softmax_attention(
            query,
            seen[0],
            seen[1],
            fading=fading,
            window=self.window,
            behind=self.behind,
            segment_ids=ids,
        )
        state = last_slots(past, past_ids, kept)
        if self.log_horizon is not None:
            state = _since_the_last(state)
        return self.output(mixed.reshape(x.shape)), state


def _since_the_last(state: Recent) -> Recent:
    """The state with its seconds counted from its last event."""
    keys, values, seconds = state.values
    slots = seconds.shape[1]
    held = jnp.arange(slots) >= slots - state.length[:, None]
    return Recent([keys, values, jnp.where(held, seconds - seconds[:, -1:], 0)], state.length)
