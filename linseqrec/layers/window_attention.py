"""Softmax attention over a window, with rotary positions or as a lookup, that streams."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from linseqrec.events import SECONDS_PER_DAY
from linseqrec.layers.short_convolution import NoConvolution, ShortConvolution
from linseqrec.layers.standard import Dense
from linseqrec.layers.starting_values import copy_kernel, lookup_kernel, lookup_taps
from linseqrec.layers.states import PartState, behind_recent, empty, empty_recent
from linseqrec.layers.time_gaps import Clock, initial_log_horizon
from linseqrec.ops.recent import Recent
from linseqrec.ops.rotary import rotary
from linseqrec.ops.softmax_attention import Fading, softmax_attention


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WindowState:
    """What attention over a window carries from one call to the next.

    Attributes:
      window: Keys and values [B, window - 1 + behind, H, K] of the last events, and what else is
        kept of them.
      convolution: The last inputs of the short convolution, [B, W - 1, 3 D]; () without it.
    """

    window: Recent
    convolution: PartState


class WindowAttention(nnx.Module):
    """Causal multi-head attention over the last `window` events of each history.

        q, k, v = split(W_qkv x + b_qkv);  q, k = R(q), R(k)      per head
        y = W_o softmax(q kᵀ / √K) v + b_o

    or, with a short convolution, which tells a key what came right before its event:

        q, k, v = split(SiLU(conv(W_qkv x)))
        y = W_o softmax(q kᵀ / √K) v

    It then starts as a lookup (`layers/starting_values.py`, ours), and knows of no positions.

    It carries the keys and values of the last `window - 1 + behind` events. A short window makes it
    a layer for the recent past. A window as long as the histories makes it full causal attention
    with a fixed cache. A row that a window does not cut is computed as without one.

    With `behind`, the query of event t sees the `window` events up to t - behind, at their own
    positions and times. It reads 0 if the history has no event that old.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        window: int,
        behind: int = 0,
        kernel: int | None = None,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Makes fresh parameters.

        Args:
          width: D.
          heads: They divide the width.
          window: How many events one sees, the last of them `behind` before it.
          behind: See above.
          kernel: Taps of the short convolution; None: there is none, and positions are rotary.
          dtype: Compute dtype.
          rngs: Randomness.
        """
        self.width, self.heads, self.window, self.behind = width, heads, window, behind
        rotates = kernel is None
        self.query_key_value = Dense(width, 3 * width, bias=rotates, dtype=dtype, rngs=rngs)
        self.output = Dense(width, width, bias=rotates, dtype=dtype, rngs=rngs)
        self.convolution: ShortConvolution | NoConvolution = NoConvolution()
        self.turn: Callable[..., Array] = rotary
        if kernel is not None:
            sizes = heads, width // heads, width // heads
            self.query_key_value.kernel[...] = lookup_kernel(width, *sizes, rngs=rngs)
            self.convolution = ShortConvolution(3 * width, kernel, bias=False, rngs=rngs)
            self.convolution.weight[...] = lookup_taps(kernel, *sizes)
            copied = copy_kernel(self.query_key_value.kernel[...], heads, sizes[-1])
            self.output.kernel[...] = copied
            self.turn = _as_it_is

    def initial_state(self, batch_size: int) -> WindowState:
        """The state before any event."""
        kept = empty(batch_size, self._kept, self.heads, self.width // self.heads)
        window = empty_recent(batch_size, [kept, kept])
        return WindowState(window, self.convolution.initial_state(batch_size))

    def __call__(
        self, x: Float[Array, "B T D"], clock: Clock, state: WindowState
    ) -> tuple[Float[Array, "B T D"], WindowState]:
        """Mixes a row's events over time.

        Args:
          x: Normalised inputs.
          clock: Segments and positions; where timed, the gaps.
          state: Keys (rotated) and values [B, window - 1 + behind, H, K] of the last events before
            each row's first segment and, where timed, their seconds [B, window - 1 + behind]
            relative to the last one; and what the convolution has still to see.

        Returns:
          The mixed values, and the state after each row's last segment.
        """
        shape = (*x.shape[:2], self.heads, x.shape[2] // self.heads)
        mixed, convolution = self.convolution(
            self.query_key_value(x), clock.segment_ids, state.convolution
        )
        query, key, value = (part.reshape(shape) for part in jnp.split(mixed, 3, axis=-1))
        query, key = self.turn(query, clock.positions), self.turn(key, clock.positions)
        seen, ids, window = behind_recent(
            [key, value, *self.times(clock)], clock.segment_ids, state.window, self._kept
        )
        attended = softmax_attention(
            query,
            seen[0],
            seen[1],
            fading=self.fading(seen),
            window=self.window,
            behind=self.behind,
            segment_ids=ids,
        )
        mixed = self.output(attended.reshape(x.shape))
        return mixed, WindowState(self.carried_on(window), convolution)

    def times(self, clock: Clock) -> list[Array]:
        """What is kept of an event beside its key and value: nothing."""
        del clock
        return []

    def fading(self, seen: list[Array]) -> Fading | None:
        """How weights fade: not at all."""
        del seen
        return None

    def carried_on(self, window: Recent) -> Recent:
        """The last events as the next call takes them: as they are."""
        return window

    @property
    def _kept(self) -> int:
        return self.window - 1 + self.behind


class TimedWindowAttention(WindowAttention):
    """`WindowAttention` in which an event's weight fades with the days since.

        y = W_o softmax(q kᵀ / √K - (t_q - t_k) / T) v + b_o      T = e^c days a head

    A softmax weight gets the factor exp(-(t_q - t_k) / T), as a write does in a decaying memory
    (`TADN`). Ours: ALiBi with days in place of positions.

    Attributes:
      log_horizon: c, float32 [H].
    """

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs, **options: Any):
        """Args: as of `WindowAttention`."""
        super().__init__(width, heads, rngs=rngs, **options)
        self.log_horizon = nnx.Param(initial_log_horizon(heads, rngs=rngs))

    def initial_state(self, batch_size: int) -> WindowState:
        """The state before any event, with the events' seconds."""
        untimed = super().initial_state(batch_size)
        seconds = empty(batch_size, self._kept, dtype=jnp.int32)
        window = empty_recent(batch_size, [*untimed.window.values, seconds])
        return WindowState(window, untimed.convolution)

    def times(self, clock: Clock) -> list[Array]:
        """Seconds of each row's own clock: only differences within a history are read."""
        return [jnp.cumsum(jnp.round(clock.gaps * SECONDS_PER_DAY).astype(jnp.int32), axis=1)]

    def fading(self, seen: list[Array]) -> Fading:
        """The seconds of the events seen, and 1 / T."""
        return Fading(seen[2], jnp.exp(-self.log_horizon[...]) / SECONDS_PER_DAY)

    def carried_on(self, window: Recent) -> Recent:
        """The last events with their seconds counted from the last one."""
        keys, values, seconds = window.values
        slots = seconds.shape[1]
        held = jnp.arange(slots) >= slots - window.length[:, None]
        return Recent([keys, values, jnp.where(held, seconds - seconds[:, -1:], 0)], window.length)


def _as_it_is(heads: Float[Array, "B T H K"], positions: Int[Array, "B T"]) -> Array:
    """Stands for `rotary` where the convolution tells the order."""
    del positions
    return heads
