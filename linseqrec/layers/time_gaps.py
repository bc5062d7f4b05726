"""The time between events."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from linseqrec.ops.segments import segment_runs

_DAY = 86_400
_LONGEST = 3650.0


def gaps_in_days(
    timestamps: Int[Array, "B T"],
    segment_ids: Int[Array, "B T"],
    last_timestamp: Int[Array, "B"] | None = None,
) -> tuple[Float[Array, "B T"], Int[Array, "B"]]:
    """Days since the event before, in the same history.

    Timestamps are subtracted as integers: in float32, seconds of a log of years are off by minutes.

    Args:
      timestamps: [B, T], seconds.
      segment_ids: [B, T], one id from 1 per history; 0 is padding.
      last_timestamp: [B], the time of the event before the row's first history went on; -1 or None
        where there was none.

    Returns:
      gaps: float32 [B, T] in 0..3650 days; 0 at a history's first event and at padding.
      last_timestamp: int32 [B] after the row's last event; that given (or -1) in a row without.
    """
    timestamps = timestamps.astype(jnp.int32)
    if last_timestamp is None:
        last_timestamp = jnp.full_like(timestamps, -1, shape=timestamps.shape[:1])
    last_timestamp = last_timestamp.astype(jnp.int32)
    real = segment_ids > 0
    slots = jnp.arange(timestamps.shape[1])
    first = real & (slots == jnp.argmax(real, axis=1)[:, None])
    before = jnp.pad(timestamps[:, :-1], ((0, 0), (1, 0)))
    before = jnp.where(first, last_timestamp[:, None], before)
    runs = segment_runs(segment_ids)
    goes_on = jnp.pad(runs[:, 1:] == runs[:, :-1], ((0, 0), (1, 0)))
    known = real & jnp.where(first, last_timestamp[:, None] >= 0, goes_on)
    seconds = jnp.where(known, timestamps - before, 0)
    gaps = jnp.clip(seconds.astype(jnp.float32) / _DAY, 0.0, _LONGEST)
    last = jnp.max(jnp.where(real, slots, -1), axis=1)
    latest = jnp.take_along_axis(timestamps, jnp.maximum(last, 0)[:, None], axis=1)[:, 0]
    return gaps, jnp.where(last < 0, last_timestamp, latest)
