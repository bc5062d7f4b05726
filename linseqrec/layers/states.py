"""States of layers: before any event, what operations make of them, and traces for analyses.

A layer always gets a state. Before any event its arrays are NumPy zeros (`empty`), which JAX treats
as constants while it traces. `past_or_none` returns None for such a state, and the operation then
compiles no code for a past. So training and evaluation do no work for it. A program that takes
states as arguments, as serving does, makes them arrays of JAX: the same values, in the general
program.

A linear mixer reports what it holds while it reads a batch by `record`; see `analysis/traces.py`.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

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


def past_or_none(state: State) -> State | None:
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
    past = past_or_none(recent)
    longer, ids = after_recent(values, segment_ids, past, slots)
    after = last_slots(longer, ids, slots)
    return (values, segment_ids, after) if past is None else (longer, ids, after)


# The passes of a recording under way, first to last.
Passes = list[tuple[nnx.Module, "MixerTrace"]]
_PASSES: contextvars.ContextVar[Passes | None] = contextvars.ContextVar("passes", default=None)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class MixerTrace:
    """One pass through one linear mixer.

    Attributes:
      keys: The keys by which events were written.
      memory: The matrix memory after each row's last event; of a mixer that is not recurrent the
        sum over all of the row's slots, padding included.
      gates: float32 by name; empty unless the mixer is a gated delta memory. "kept": α. "written":
        the share of its value that an event writes, after all gates. Some mixers: "spike" (TADN's
        σ(W_s ..)), "coverage" (c), "removal" (λ). With a delay they are those of the event that a
        slot writes, but the time gap in α is that of the slot's own event.
      attended: What RecGRELA's linear attention read, heads side by side; None of other mixers.
      augmented: The same once its local branch has joined; None of other mixers, or without it.
      delay: How many events late the memory is: slot t writes event t - delay of its history, and
        the first `delay` slots write nothing.
    """

    keys: Float[Array, "B T H K"]
    memory: Float[Array, "B H K V"]
    gates: dict[str, Float[Array, "B T H"]] = dataclasses.field(default_factory=dict)
    attended: Float[Array, "B T D"] | None = None
    augmented: Float[Array, "B T D"] | None = None
    delay: int = dataclasses.field(default=0, metadata={"static": True})

    def of_written(self, values: np.ndarray, nothing: Any) -> np.ndarray:
        """Shifts values from the slot of an event to the slot that writes the event to the memory.

        Args:
          values: [..., T], one value per event; one history per row, from slot 0.
          nothing: The value of slots that write no event.
        """
        late, kept = np.full_like(values, nothing), max(values.shape[-1] - self.delay, 0)
        late[..., values.shape[-1] - kept :] = values[..., :kept]
        return late


@contextlib.contextmanager
def recording() -> Iterator[Passes]:
    """Collects the trace of each pass that a linear mixer makes inside the context."""
    passes: Passes = []
    token = _PASSES.set(passes)
    try:
        yield passes
    finally:
        _PASSES.reset(token)


def record(mixer: nnx.Module, make: Callable[[], MixerTrace]) -> None:
    """Adds a mixer's pass to the recording; makes no trace where none is under way."""
    passes = _PASSES.get()
    if passes is not None:
        passes.append((mixer, make()))
