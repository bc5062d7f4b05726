"""What a model is told of the time at which its prediction is asked for."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from linseqrec.events import SECONDS_PER_DAY, Events
from linseqrec.layers.standard import Decayed, Dense

# Periods of the calendar in seconds, and how many harmonics of each are read: four of the day tell
# hours, three of the week weekdays. The year is the Gregorian calendar's mean one.
_PERIODS = ((SECONDS_PER_DAY, 4), (604_800, 3), (31_556_952, 3))
# One a power of two of the elapsed seconds below 2^31, and one for the same second.
_BUCKETS = 32


class RequestTime(nnx.Module):
    """Tells a model the request time of each event: at its input and at its output.

        r = SiLU(E[bucket of the seconds since the event] + W_c calendar of the request)
        input:   x + W_x r
        output:  h ⊙ (1 + W_g r) + W_s r

    The input reaches every query, key, value and gate; the output lets the scores of all items
    depend on the time of day. The calendar is sine and cosine of the request's place in the day,
    the week and the year, of the log's own clock: where the log's first event stands in them is a
    phase, which W_c learns. W_x, W_g and W_s start at 0, so that nothing changes at first. Ours.

    Attributes:
      elapsed: E, float32 [32, D]; row 0 is the same second, row i from 2^(i-1) to 2^i - 1 seconds.
    """

    def __init__(self, width: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.dtype = dtype
        self.elapsed = nnx.Param(jax.random.normal(rngs.params(), (_BUCKETS, width)))
        waves = 2 * sum(harmonics for _, harmonics in _PERIODS)
        # Flax's own starting values, a normal cut at two deviations.
        self.calendar = nnx.Linear(waves, width, use_bias=False, dtype=dtype, rngs=rngs)
        self.calendar.kernel = Decayed(self.calendar.kernel[...])
        self.input, self.output = (
            Dense(width, outputs, bias=False, deviation=0.0, dtype=dtype, rngs=rngs)
            for outputs in (width, 2 * width)
        )

    def visible_events(self, events: Events) -> Events:
        """The events as the model's other layers may read them: with their request times."""
        return events

    def enter(self, x: Float[Array, "B T D"], events: Events) -> Float[Array, "B T D"]:
        """Adds the features of each event's request time to the embedded events x.

        Raises:
          ValueError: If the events carry no request times.
        """
        return x + self.input(self._features(events))

    def leave(self, hidden: Float[Array, "B T D"], events: Events) -> Float[Array, "B T D"]:
        """Scales and shifts the hidden vectors by the features of each event's request time."""
        gain, shift = jnp.split(self.output(self._features(events)), 2, axis=-1)
        return hidden * (1 + gain) + shift

    def _features(self, events: Events) -> Float[Array, "B T D"]:
        """r; the compiler makes it once for the two that ask."""
        if events.request_times is None:
            raise ValueError(
                "this model is told request times, and the events carry none: set request_times"
            )
        requests = jnp.asarray(events.request_times)
        elapsed = jnp.take(self.elapsed[...], elapsed_bucket(requests - events.timestamps), axis=0)
        waves = calendar(requests).astype(self.dtype)
        return jax.nn.silu(elapsed.astype(self.dtype) + self.calendar(waves))


def elapsed_bucket(seconds: Int[Array, "..."]) -> Int[Array, "..."]:
    """1 + ⌊log2 seconds⌋ from 1 to 31, and 0 for no time or a clock that goes back; exact."""
    return 32 - jax.lax.clz(jnp.maximum(seconds, 0))


def calendar(seconds: Int[Array, "B T"]) -> Float[Array, "B T C"]:
    """Sine and cosine of the place in the day, the week and the year, with harmonics; float32.

    Places are taken as integers, before they are cast: as float32, seconds of years are 128 s
    apart.
    """
    angles = jnp.concatenate(
        [
            (seconds % period)[..., None].astype(jnp.float32)
            * (2 * math.pi / period * jnp.arange(1, harmonics + 1, dtype=jnp.float32))
            for period, harmonics in _PERIODS
        ],
        axis=-1,
    )
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
