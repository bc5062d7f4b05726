"""The channels of FuXi-Linear (arXiv 2602.23671): retention, temporal and positional.

Each is a linear attention over the history, and they differ in what queries and keys are made of:
the events' vectors, their times, or their positions.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from linseqrec.events import SECONDS_PER_DAY, Events
from linseqrec.layers.standard import Dense, sinusoidal_positions
from linseqrec.layers.states import empty, past_or_none
from linseqrec.layers.time_gaps import times_asked, waits_in_days
from linseqrec.ops.decayed_linear_attention import decayed_linear_attention

# Standard deviation of fresh decays and of fresh α.
_DEVIATION = 0.02
# Timestamps are int32: no time is as long as this period, in seconds.
LONGEST_PERIOD = 2**31


class Phases(NamedTuple):
    """Queries, keys and decays of the temporal channels: P periods, each as sine and cosine.

    Attributes:
      query: The place of each request in each period, faded since the event; float32.
      key: The place of each event in each period; float32.
      log_decay: What the time since the event before leaves, float32.
    """

    query: Float[Array, "B T P2 2"]
    key: Float[Array, "B T P2 2"]
    log_decay: Float[Array, "B T P2"]


class TemporalPhases(nnx.Module):
    """Turns times into queries and keys whose products are waves of the time between them.

        θ(τ) = 2π (τ mod b) / b                       the place of a time in a period of b seconds
        k_s = [cos θ(τ_s), sin θ(τ_s)]
        q_t = [sin θ(asked_t), -cos θ(asked_t)]       so that q_t·k_s = sin(θ(asked_t) - θ(τ_s))
        q_t = [cos θ(asked_t), sin θ(asked_t)]        so that q_t·k_s = cos(θ(asked_t) - θ(τ_s))

    and both products fade by γ^(2π (asked_t - τ_s) / b), γ = σ(g). The period of number h is
    first · ratio^h seconds. Source: arXiv 2602.23671 and its released code, in which the first
    block holds g and all blocks read it.

    Attributes:
      fading: g, float32 [P].
    """

    def __init__(self, periods: int, *, first: int, ratio: int, rngs: nnx.Rngs):
        """Args: `periods` is P; `first` and `ratio` make them, in seconds."""
        self.periods = tuple(first * ratio**index for index in range(periods))
        draw = nnx.initializers.normal(_DEVIATION)
        self.fading = nnx.Param(draw(rngs.params(), (periods,), jnp.float32))

    def __call__(self, events: Events, gaps: Float[Array, "B T"]) -> Phases:
        """Reads the times of a row's events.

        Args:
          events: The row; where request times are hidden, a request is at its event's own time.
          gaps: Days since the event before.
        """
        rates = 2 * math.pi / jnp.asarray(self.periods, jnp.float32)
        # The decay rate of each period, per day.
        fading = SECONDS_PER_DAY * rates * jax.nn.softplus(-self.fading[...])
        cosine, sine = self._place(jnp.asarray(events.timestamps), rates)
        key = jnp.stack([cosine, sine], axis=-1)
        cosine, sine = self._place(times_asked(events), rates)
        query = jnp.concatenate(
            [jnp.stack([sine, -cosine], axis=-1), jnp.stack([cosine, sine], axis=-1)], axis=2
        )
        wait = waits_in_days(events)
        if wait is not None:
            left = jnp.exp(-wait[..., None] * fading)
            query = query * jnp.tile(left, (1, 1, 2))[..., None]
        log_decay = jnp.tile(-gaps[..., None] * fading, (1, 1, 2))
        return Phases(query, jnp.tile(key, (1, 1, 2, 1)), log_decay)

    def _place(
        self, seconds: Int[Array, "B T"], rates: Float[Array, "P"]
    ) -> tuple[Float[Array, "B T P"], Float[Array, "B T P"]]:
        """Cosine and sine of the place in each period, which is taken in integers."""
        places = [
            seconds if period == LONGEST_PERIOD else seconds % period for period in self.periods
        ]
        angles = jnp.stack(places, axis=-1).astype(jnp.float32) * rates
        return jnp.cos(angles), jnp.sin(angles)


class NoPhases(nnx.Module):
    """Stands for `TemporalPhases` in a model without temporal channels."""

    def __call__(self, events: Events, gaps: Float[Array, "B T"]) -> Phases:
        """No periods."""
        del events
        none = jnp.zeros((*gaps.shape, 0, 2))
        return Phases(none, none, none[..., 0])


class MixerInputs(NamedTuple):
    """What the channels read beside the events' vectors.

    Attributes:
      segment_ids: One id from 1 per history; 0 is padding.
      positions: Within the history, from 0.
      phases: What the temporal channels read.
    """

    segment_ids: Int[Array, "B T"]
    positions: Int[Array, "B T"]
    phases: Phases


class Retention(nnx.Module):
    """Attention by content: o_t = Σ_{s ≤ t} λ_h^(t - s + 1) (q_t·k_s) v_s, a head h.

    λ_h = exp(-exp(-(softplus(r_1) + … + softplus(r_h)))) puts the heads in order, from a short
    memory to a long one: λ starts near e^(-1/2), e^(-1/4), e^(-1/8), ... Source: RetNet (arXiv
    2307.08621), with the decays of the released FuXi-Linear.

    Attributes:
      rate: r, float32 [H].
    """

    def __init__(self, width: int, heads: int, *, chunk_size: int, rngs: nnx.Rngs):
        self.width, self.heads, self.chunk_size = width, heads, chunk_size
        draw = nnx.initializers.normal(_DEVIATION)
        self.rate = nnx.Param(draw(rngs.params(), (heads,), jnp.float32))

    def initial_state(self, batch_size: int) -> Float[Array, "B H K K"]:
        """The memory before any event."""
        size = self.width // self.heads
        return empty(batch_size, self.heads, size, size)

    def __call__(
        self,
        query: Float[Array, "B T D"],
        key: Float[Array, "B T D"],
        value: Float[Array, "B T D"],
        inputs: MixerInputs,
        state: Float[Array, "B H K K"],
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B H K K"]]:
        """Reads the memory at each event; and the memory after each row's last segment."""
        shape = (*query.shape[:2], self.heads, self.width // self.heads)
        log_decay = -jnp.exp(-jnp.cumsum(jax.nn.softplus(self.rate[...])))
        scaled = query.reshape(shape) * jnp.exp(log_decay)[:, None].astype(query.dtype)
        read, state = decayed_linear_attention(
            scaled,
            key.reshape(shape),
            value.reshape(shape),
            jnp.broadcast_to(log_decay, shape[:3]),
            segment_ids=inputs.segment_ids,
            initial_state=past_or_none(state),
            chunk_size=self.chunk_size,
        )
        return read.reshape(query.shape), state


class TemporalChannel(nnx.Module):
    """Attention by time: o_t = α Σ_{s ≤ t} (q_t·k_s) v_s + β v_t, by period and wave; v = W x.

    `TemporalPhases` makes queries, keys and decays. Each of the 2 P heads has D / (2 P) values.

    Attributes:
      past: α, float32 [2 P], which starts near 0.
      current: β, float32 [2 P], which starts at 1.
    """

    def __init__(
        self, width: int, periods: int, *, chunk_size: int, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        self.heads, self.value_width = 2 * periods, width // (2 * periods)
        self.chunk_size = chunk_size
        self.value = Dense(width, width, bias=False, dtype=dtype, rngs=rngs)
        self.past, self.current = _shares((self.heads,), rngs=rngs)

    def initial_state(self, batch_size: int) -> Float[Array, "B P2 2 V"]:
        """The memory before any event."""
        return empty(batch_size, self.heads, 2, self.value_width)

    def __call__(
        self, x: Float[Array, "B T D"], inputs: MixerInputs, state: Float[Array, "B P2 2 V"]
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B P2 2 V"]]:
        """Reads the memory at each request; and the memory after each row's last segment."""
        value = self.value(x).reshape(*x.shape[:2], self.heads, self.value_width)
        read, state = decayed_linear_attention(
            inputs.phases.query,
            inputs.phases.key,
            value,
            inputs.phases.log_decay,
            segment_ids=inputs.segment_ids,
            initial_state=past_or_none(state),
            chunk_size=self.chunk_size,
        )
        past, current = (share[...][:, None].astype(x.dtype) for share in (self.past, self.current))
        return (past * read + current * value).reshape(x.shape), state


class PositionalChannel(nnx.Module):
    """Attention by position: o_t = α Σ_{s ≤ t} (e_t·e_s) / (E / 2) v_s + β v_t;  v = W x.

    e_t is the learned vector of t's position, which starts as sinusoids.

    Attributes:
      table: e, float32 [N, E].
      past: α, float32 [1], which starts near 0.
      current: β, float32 [1], which starts at 1.
    """

    def __init__(
        self,
        width: int,
        max_length: int,
        position_width: int,
        *,
        chunk_size: int,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Args: `max_length` is N, `position_width` E."""
        self.width, self.position_width, self.chunk_size = width, position_width, chunk_size
        self.value = Dense(width, width, bias=False, dtype=dtype, rngs=rngs)
        slots = jnp.arange(max_length, dtype=jnp.int32)[None]
        self.table = nnx.Param(sinusoidal_positions(slots, position_width)[0])
        self.past, self.current = _shares((1,), rngs=rngs)

    def initial_state(self, batch_size: int) -> Float[Array, "B 1 E D"]:
        """The memory before any event."""
        return empty(batch_size, 1, self.position_width, self.width)

    def __call__(
        self, x: Float[Array, "B T D"], inputs: MixerInputs, state: Float[Array, "B 1 E D"]
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B 1 E D"]]:
        """Reads the memory at each position; and the memory after each row's last segment."""
        value = self.value(x)
        place = jnp.take(self.table[...], inputs.positions, axis=0)[:, :, None]
        read, state = decayed_linear_attention(
            place,
            place / (self.position_width // 2),
            value[:, :, None],
            jnp.zeros(place.shape[:3]),
            segment_ids=inputs.segment_ids,
            initial_state=past_or_none(state),
            chunk_size=self.chunk_size,
        )
        past, current = (share[...].astype(x.dtype) for share in (self.past, self.current))
        return past * read[:, :, 0] + current * value, state


def _shares(shape: tuple[int, ...], *, rngs: nnx.Rngs) -> tuple[nnx.Param, nnx.Param]:
    """Fresh α and β of a channel."""
    draw = nnx.initializers.normal(_DEVIATION)
    return nnx.Param(draw(rngs.params(), shape, jnp.float32)), nnx.Param(jnp.ones(shape))
