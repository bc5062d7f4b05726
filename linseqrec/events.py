"""`Events`: what every model reads, a batch of user histories."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from linseqrec.ops.segments import at_last_event

SECONDS_PER_DAY = 86_400


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Events:
    """A batch of rows of events; a row holds one user's history or several, packed.

    Within a row the events of one segment are contiguous and in time order; padding may stand
    before, between and after segments. Fields may be NumPy or JAX arrays.

    Attributes:
      items: Item ids from 1; 0 is padding.
      timestamps: Seconds since the data set's first event; 0 at padding. Subtract them as integers.
      segment_ids: Ids from 1, one per history in the row; 0 is padding.
      positions: Position of the event within its segment, from 0; 0 at padding.
      request_times: When the prediction after each event is asked for, on the clock of
        `timestamps`; 0 at padding. None: request times are hidden, and no model can read them.
    """

    items: Int[Any, "B T"]
    timestamps: Int[Any, "B T"]
    segment_ids: Int[Any, "B T"]
    positions: Int[Any, "B T"]
    request_times: Int[Any, "B T"] | None = None


def history_lengths(events: Events, before: Int[Array, "B"] | None = None) -> Int[Array, "B"]:
    """Events so far of each row's last history: one more than its last event's position.

    Args:
      events: The batch, [B, T].
      before: int32 [B], what is returned for a row without events. None: 0.

    Returns:
      int32 [B], the position of the history's next event.
    """
    positions = jnp.asarray(events.positions)
    before = jnp.zeros_like(positions[:, 0]) if before is None else before
    return at_last_event(positions + 1, events.segment_ids, before)
