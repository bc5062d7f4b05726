"""The time between events: what temporal decays read, and its features."""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from linseqrec.events import SECONDS_PER_DAY, Events
from linseqrec.layers.standard import Dense
from linseqrec.layers.states import Stateless, empty, empty_recent, past_or_none
from linseqrec.ops.recent import Recent, after_recent, last_slots, slots_back
from linseqrec.ops.segments import at_last_event, keep, segment_runs

# The time that a decay reads before an event: "gaps", the days since the event before; "shuffled",
# these gaps in another order, and "positions", 1 for each event, which are controls; "none", 0.
Time = Literal["gaps", "shuffled", "positions", "none"]

# log T of a decay exp(-days / T), [H]; infinity where nothing fades.
Horizon = nnx.Param | Array | float

# The longest gap that a model reads; longer ones are cut.
MOST_DAYS = 3_650.0
# Of the decay's time constants, in days.
_HORIZONS = (1.0, 365.0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Clock:
    """What a mixer reads of each slot beside its input: where and when it stands.

    Attributes:
      segment_ids: One id from 1 per history; 0 is padding.
      positions: Within the history, from 0; a carried history's go on.
      gaps: Days since the event before, float32.
      age: Days since the newest event in a late memory, float32 (see `TADN`).
      wait: Days from each event to the request after it, float32; None where it is hidden.
    """

    segment_ids: Int[Array, "B T"]
    positions: Int[Array, "B T"]
    gaps: Float[Array, "B T"]
    age: Float[Array, "B T"]
    wait: Float[Array, "B T"] | None = None


def no_timestamp(batch_size: int) -> Int[Array, "B"]:
    """The last event's time before any event."""
    return empty(batch_size, dtype=np.int32) - 1


def gaps_in_days(
    timestamps: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"],
    last_timestamp: Int[Array, "B"],
) -> tuple[Float[Array, "B T"], Int[Array, "B"]]:
    """The time since the event before, in days, clipped to ten years.

    Timestamps are subtracted as integers: as float32, seconds of years ago are 128 s apart.

    Args:
      timestamps: int32 [B, T], seconds, not negative; any number at padding.
      segment_ids: [B, T], 0 = padding; the events of one segment are contiguous.
      last_timestamp: int32 [B], the event before the row's first segment; -1 where none came
        before (`no_timestamp`).

    Returns:
      gaps: float32 [B, T], from 0 to 3650; 0 at a history's first event and at padding. A clock
        that goes back counts as no time.
      last_timestamp: int32 [B], of the row's last event; of a row without events, what was given.
    """
    last_timestamp = jnp.asarray(last_timestamp)
    real, runs = segment_ids > 0, segment_runs(segment_ids)
    begins = real & ~jnp.pad(real[:, :-1] & (runs[:, :-1] == runs[:, 1:]), ((0, 0), (1, 0)))
    before = jnp.pad(timestamps[:, :-1], ((0, 0), (1, 0)))
    # The row's first segment is number 1; its first event goes on from the carried one.
    before = jnp.where(begins, jnp.where(runs == 1, last_timestamp[:, None], -1), before)
    seconds = jnp.where(real & (before >= 0), timestamps - before, 0)
    gaps = jnp.clip(seconds.astype(jnp.float32) / SECONDS_PER_DAY, 0.0, MOST_DAYS)
    return gaps, at_last_event(timestamps, segment_ids, last_timestamp)


def shuffled_gaps(gaps: Float[Array, "B T"], segment_ids: Int[Array, "B T"]) -> Float[Array, "B T"]:
    """Permutes the gaps of each segment: a control whose decays keep their sizes, not places.

    The permutation depends only on the number of events of the history, not on padding or on other
    histories of the row. The first event keeps its gap of 0. A slot may get a gap from later in the
    history, so the control needs the whole history. It never reads a later item, and later gaps can
    only make the control stronger.

    Args:
      gaps: float32 [B, T].
      segment_ids: [B, T], 0 = padding; the events of one segment are contiguous.

    Returns:
      [B, T], a permutation of each segment's gaps.
    """
    changes = jnp.pad(segment_ids[:, 1:] != segment_ids[:, :-1], ((0, 0), (1, 0)))
    slots = jnp.arange(gaps.shape[1])
    position = slots - jax.lax.cummax(jnp.where(changes, slots, 0), axis=1)

    def draw(position: Int[Array, ""]) -> Array:
        return jax.random.bits(jax.random.fold_in(jax.random.key(0), position))

    rank = jnp.where(position == 0, 0, jax.vmap(jax.vmap(draw))(position))
    order = jnp.lexsort((rank, jnp.cumsum(changes, axis=1)), axis=1)
    return jnp.take_along_axis(gaps, order, axis=1)


def gaps_taken(
    time: Time, gaps: Float[Array, "B T"], segment_ids: Int[Array, "B T"]
) -> Float[Array, "B T"]:
    """What `time` takes for the gaps: themselves, or one of their controls.

    Args:
      time: Which.
      gaps: float32 [B, T], from `gaps_in_days`.
      segment_ids: [B, T], 0 = padding.

    Returns:
      [B, T]. With "positions" a history's first event has a gap of 1, which fades an empty memory.
    """
    if time == "shuffled":
        return shuffled_gaps(gaps, segment_ids)
    if time == "positions":
        return (segment_ids > 0).astype(gaps.dtype)
    return gaps if time == "gaps" else jnp.zeros_like(gaps)


class DaysSince(nnx.Module):
    """The days that have passed at each event since the one `events` events before it.

    They are sums of that many gaps. A difference of two sums over the row would lose short gaps
    behind years of others.
    """

    def __init__(self, events: int):
        """Args: `events` is how far back; at least 1."""
        self.events = events

    def initial_state(self, batch_size: int) -> Recent:
        """The gaps before any event."""
        return empty_recent(batch_size, empty(batch_size, self.events))

    def __call__(
        self, gaps: Float[Array, "B T"], segment_ids: Int[Array, "B T"], state: Recent
    ) -> tuple[Float[Array, "B T"], Recent]:
        """Sums the gaps.

        Args:
          gaps: float32 [B, T], days before each event.
          segment_ids: [B, T], 0 = padding; the events of one segment are contiguous.
          state: The last `events` gaps before the row's first segment.

        Returns:
          float32 [B, T], 0 where a history is younger and at padding; and the last `events` gaps of
          the row's last segment.
        """
        longer, ids = after_recent(gaps, segment_ids, past_or_none(state), self.events)
        _, same = slots_back(longer, ids, segment_ids, [self.events])
        window = (1, self.events)
        sums = jax.lax.reduce_window(longer, 0.0, jax.lax.add, window, (1, 1), "valid")[:, 1:]
        return keep(same[:, :, 0], sums), last_slots(longer, ids, self.events)


class NoAge(Stateless):
    """Stands for `DaysSince` where no memory fades with the time that it is late."""

    def __call__(
        self, gaps: Float[Array, "B T"], segment_ids: Int[Array, "B T"], state: tuple[()]
    ) -> tuple[Float[Array, "B T"], tuple[()]]:
        """No days."""
        del segment_ids
        return jnp.zeros_like(gaps), state


def times_asked(events: Events) -> Int[Array, "B T"]:
    """The time for which each event's prediction is made, in seconds.

    Returns:
      int32 [B, T], the request times; the events' own times where request times are hidden.
    """
    times = events.timestamps if events.request_times is None else events.request_times
    return jnp.asarray(times)


def waits_in_days(events: Events) -> Float[Array, "B T"] | None:
    """The time from each event to the request after it, in days, clipped to ten years.

    Returns:
      float32 [B, T], from 0 to 3650; None where request times are hidden.
    """
    if events.request_times is None:
        return None
    seconds = jnp.asarray(events.request_times) - events.timestamps
    return jnp.clip(seconds.astype(jnp.float32) / SECONDS_PER_DAY, 0.0, MOST_DAYS)


def left_at_request(
    wait: Float[Array, "B T"] | None, log_horizon: Horizon
) -> Float[Array, "B T H 1"] | float:
    """exp(-wait / T), what is left of a reading when its request comes.

    Args:
      wait: float32 [B, T], days from each event to its request; None where it is hidden.
      log_horizon: [H], log T, T in days; infinity where nothing fades.

    Returns:
      [B, T, H, 1]; 1 where the request is hidden.
    """
    return 1.0 if wait is None else jnp.exp(log_fading(wait, log_horizon))[..., None]


def log_fading(gaps: Float[Array, "B T"], log_horizon: Horizon) -> Float[Array, "B T H"]:
    """The logarithm of exp(-gap / T), what so many days leave of a memory.

    Args:
      gaps: float32 [B, T], days.
      log_horizon: [H], log T, T in days; infinity where nothing fades.

    Returns:
      [B, T, H], at most 0; [B, T, 1] where nothing fades.
    """
    return -gaps[..., None] * jnp.exp(-log_horizon)


def initial_log_horizon(heads: int, *, rngs: nnx.Rngs) -> Float[Array, "H"]:
    """Draws log T of a decay exp(-gap / T), a head each: T log-uniform from a day to a year."""
    low, high = np.log(_HORIZONS)
    return jax.random.uniform(rngs.params(), (heads,), minval=low, maxval=high)


# The number of waves j.
_WAVES = 8


class GapFeatures(nnx.Module):
    """φ = W_φ [sin(ω_j u), 1 − cos(ω_j u)],  u = log(1 + Δ),  ω_j = 2^j π / log(1 + 3650).

    Δ is in days; the slowest wave makes half a turn over ten years, the fastest tells seconds from
    hours. φ(0) = 0: without gaps nothing is added anywhere. Ours.
    """

    def __init__(self, features: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.dtype = dtype
        self.projection = Dense(2 * _WAVES, features, bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, gaps: Float[Array, "B T"]) -> Float[Array, "B T F"]:
        """The features of gaps in days."""
        rates = 2.0 ** jnp.arange(_WAVES) * (math.pi / math.log1p(MOST_DAYS))
        angles = jnp.log1p(gaps)[..., None] * rates
        features = jnp.concatenate([jnp.sin(angles), 1 - jnp.cos(angles)], axis=-1)
        return self.projection(features.astype(self.dtype))


class NoGapFeatures(nnx.Module):
    """Stands for `GapFeatures` in a model whose queries and keys know no gaps."""

    def __call__(self, gaps: Float[Array, "B T"]) -> Float[Array, "B T 0"]:
        """No features."""
        return jnp.zeros((*gaps.shape, 0), gaps.dtype)
