"""`Events`: what every model reads, a batch of user histories."""

import dataclasses
from typing import Any

import jax
from jaxtyping import Int


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
    """

    items: Int[Any, "B T"]
    timestamps: Int[Any, "B T"]
    segment_ids: Int[Any, "B T"]
    positions: Int[Any, "B T"]
