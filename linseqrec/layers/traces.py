"""What a linear mixer holds while it reads a batch, for analyses."""

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator

import jax
from flax import nnx
from jaxtyping import Array, Float

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
      gates: Of a gated delta memory, float32 by name: "kept", α; "written", how much of its value
        an event writes, gates and all; and where the mixer has them "spike", TADN's σ(W_s ..),
        "coverage", c, and "removal", λ. Of a late memory they are those of the event
        that it takes, 0 where none is, but for the gap in α, the present event's. Of other mixers
        empty.
      attended: What RecGRELA's linear attention read, heads side by side; None of other mixers.
      augmented: The same once its local branch has joined; None of other mixers, or without it.
    """

    keys: Float[Array, "B T H K"]
    memory: Float[Array, "B H K V"]
    gates: dict[str, Float[Array, "B T H"]] = dataclasses.field(default_factory=dict)
    attended: Float[Array, "B T D"] | None = None
    augmented: Float[Array, "B T D"] | None = None


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
