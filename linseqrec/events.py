"""`Events`, the batch of user histories that every model reads."""

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
    """A batch of rows; each row holds the history of one user, or several packed histories.

    Each history is one segment of its row: contiguous events in time order. Padding may stand
    before, between and after segments. Fields may be NumPy or JAX arrays.

    Attributes:
      items: Item ids from 1; 0 is padding.
      timestamps: Seconds since the data set's first event; 0 at padding. Subtract two timestamps
        as integers: float32 would round them.
      segment_ids: Ids from 1, one per history in the row; 0 is padding.
      positions: Position of the event within its segment, from 0; 0 at padding.
      request_times: For each event, the time of the request for the next item, in the seconds of
        `timestamps`; 0 at padding. None: request times are hidden, and no model can read them.
    """

    items: Int[Any, "B T"]
    timestamps: Int[Any, "B T"]
    segment_ids: Int[Any, "B T"]
    positions: Int[Any, "B T"]
    request_times: Int[Any, "B T"] | None = None


def history_lengths(events: Events, before: Int[Array, "B"]) -> Int[Array, "B"]:
    """The number of events in the last history of each row.

    Args:
      events: The batch, [B, T]. A history may begin before the batch: positions count its events.
      before: int32 [B], the length to return for a row without events.

    Returns:
      int32 [B]. The next event of the history takes this number as its position.
    """
    return at_last_event(jnp.asarray(events.positions) + 1, events.segment_ids, before)
