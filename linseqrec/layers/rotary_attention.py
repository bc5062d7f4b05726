"""Softmax attention over a window, with rotary positions, that streams."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from linseqrec.events import SECONDS_PER_DAY
from linseqrec.layers.standard import Dense
from linseqrec.layers.states import behind_recent, empty, empty_recent
from linseqrec.layers.time_gaps import Clock, initial_log_horizon
from linseqrec.ops.recent import Recent
from linseqrec.ops.rotary import rotary
from linseqrec.ops.softmax_attention import Fading, softmax_attention


class RotaryAttention(nnx.Module):
    """Causal multi-head attention over the last `window` events of each history.

        q, k, v = split(W_qkv x + b_qkv);  q, k = R(q), R(k)      per head
        y = W_o softmax(q kᵀ / √K) v + b_o

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
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Args: `window` is how many events one sees, the last of them `behind` before it."""
        self.width, self.heads, self.window, self.behind = width, heads, window, behind
        self.query_key_value = Dense(width, 3 * width, dtype=dtype, rngs=rngs)
        self.output = Dense(width, width, dtype=dtype, rngs=rngs)

    def initial_state(self, batch_size: int) -> Recent:
        """The state before any event."""
        kept = empty(batch_size, self._kept, self.heads, self.width // self.heads)
        return empty_recent(batch_size, [kept, kept])

    def __call__(
        self, x: Float[Array, "B T D"], clock: Clock, state: Recent
    ) -> tuple[Float[Array, "B T D"], Recent]:
        """Mixes a row's events over time.

        Args:
          x: Normalised inputs.
          clock: Segments and positions; where timed, the gaps.
          state: Keys (rotated) and values [B, window - 1 + behind, H, K] of the last events before
            each row's first segment and, where timed, their seconds [B, window - 1 + behind]
            relative to the last one.

        Returns:
          The mixed values, and the state after each row's last segment.
        """
        shape = (*x.shape[:2], self.heads, x.shape[2] // self.heads)
        query, key, value = (
            part.reshape(shape) for part in jnp.split(self.query_key_value(x), 3, axis=-1)
        )
        query, key = rotary(query, clock.positions), rotary(key, clock.positions)
        seen, ids, state = behind_recent(
            [key, value, *self.times(clock)], clock.segment_ids, state, self._kept
        )
        mixed = softmax_attention(
            query,
            seen[0],
            seen[1],
            fading=self.fading(seen),
            window=self.window,
            behind=self.behind,
            segment_ids=ids,
        )
        return self.output(mixed.reshape(x.shape)), self.carried_on(state)

    def times(self, clock: Clock) -> list[Array]:
        """What is kept of an event beside its key and value: nothing."""
        del clock
        return []

    def fading(self, seen: list[Array]) -> Fading | None:
        """How weights fade: not at all."""
        del seen
        return None

    def carried_on(self, state: Recent) -> Recent:
        """The state as the next call takes it: as it is."""
        return state

    @property
    def _kept(self) -> int:
        return self.window - 1 + self.behind


class TimedRotaryAttention(RotaryAttention):
    """`RotaryAttention` in which an event's weight fades with the days since.

        y = W_o softmax(q kᵀ / √K - (t_q - t_k) / T) v + b_o      T = e^c days a head

    The factor exp(-(t_q - t_k) / T) on a softmax weight is what a decaying memory has on a write
    (`TADN`); the idea is ours, and ALiBi's with days for positions.

    Attributes:
      log_horizon: c, float32 [H].
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        window: int,
        behind: int = 0,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Args: as of `RotaryAttention`."""
        super().__init__(width, heads, window=window, behind=behind, dtype=dtype, rngs=rngs)
        self.log_horizon = nnx.Param(initial_log_horizon(heads, rngs=rngs))

    def initial_state(self, batch_size: int) -> Recent:
        """The state before any event, with the events' seconds."""
        untimed = super().initial_state(batch_size)
        seconds = empty(batch_size, self._kept, dtype=jnp.int32)
        return empty_recent(batch_size, [*untimed.values, seconds])

    def times(self, clock: Clock) -> list[Array]:
        """Seconds of each row's own clock: only differences within a history are read."""
        return [jnp.cumsum(jnp.round(clock.gaps * SECONDS_PER_DAY).astype(jnp.int32), axis=1)]

    def fading(self, seen: list[Array]) -> Fading:
        """The seconds of the events seen, and 1 / T."""
        return Fading(seen[2], jnp.exp(-self.log_horizon[...]) / SECONDS_PER_DAY)

    def carried_on(self, state: Recent) -> Recent:
        """The state with its seconds counted from its last event."""
        keys, values, seconds = state.values
        slots = seconds.shape[1]
        held = jnp.arange(slots) >= slots - state.length[:, None]
        return Recent([keys, values, jnp.where(held, seconds - seconds[:, -1:], 0)], state.length)
