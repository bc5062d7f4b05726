"""States before any event, and what an operation makes of them.

A layer always gets a state. Before any event its arrays are NumPy zeros (`empty`). As such they are
known while a program is traced, and `carried` tells the operations that there is no past. Training
and evaluation thus do no work for it: no attention behind an empty cache, and no gradient of a
write of zeros. A program that takes states as arguments, as serving does, makes them arrays of JAX:
the same values, in the general program.
"""

from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Int

from linseqrec.ops.recent import Recent, after_recent, last_slots

State = TypeVar("State")
# The state of a part that may be off; () where it is.
PartState = Any


class Stateless(nnx.Module):
    """A part that stands for one with a state, and has none: the part is off."""

    def initial_state(self, batch_size: int) -> tuple[()]:
        """Nothing."""
        del batch_size
        return ()


def empty(*shape: int, dtype: Any = np.float32) -> Any:
    """An array of a state before any event: NumPy zeros, one in memory whatever the shape."""
    return np.broadcast_to(np.zeros((), dtype), shape)


def empty_recent(batch_size: int, values: Any) -> Recent:
    """The last events before any; `values` [B, S, ...] is `empty`, or a pytree of such."""
    return Recent(values, empty(batch_size, dtype=np.int32))


def carried(state: State) -> State | None:
    """The state as operations take it: None where it is known to be empty."""
    leaves = jax.tree.leaves(state)
    if all(isinstance(leaf, np.ndarray) and not leaf.any() for leaf in leaves):
        return None
    return state


def behind_recent(
    values: Any, segment_ids: Int[Array, "B T"], recent: Recent, slots: int
) -> tuple[Any, Int[Array, "B S_T"], Recent]:
    """Puts the last slots before a row, as `after_recent` does, if there are any.

    Args:
      values: [B, T, ...] or a pytree of such.
      segment_ids: [B, T], 0 = padding.
      recent: The last slots before the row's first segment.
      slots: S, as many as `recent` has.

    Returns:
      The longer rows [B, S + T, ...] and their segment ids, or the rows as they were where no past
      is carried; and the last slots of the row's last segment.
    """
    past = carried(recent)
    longer, ids = after_recent(values, segment_ids, past, slots)
    after = last_slots(longer, ids, slots)
    return (values, segment_ids, after) if past is None else (longer, ids, after)
