"""What goes on inside a model's linear mixers while it reads a batch."""

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from linseqrec.events import Events
from linseqrec.layers.gated_delta import GatedDelta
from linseqrec.layers.rela import RELA
from linseqrec.layers.tadn import TADN
from linseqrec.models.encoding import SequenceModel


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


def linear_mixers(model: SequenceModel) -> list[tuple[tuple[Any, ...], nnx.Module]]:
    """The mixers with a matrix memory, those that `trace` looks into, by path, first to last."""
    return [
        (path, module)
        for path, module in nnx.iter_modules(cast(nnx.Module, model))
        if isinstance(module, GatedDelta | RELA)
    ]


def is_recurrent(mixer: nnx.Module) -> bool:
    """Whether a mixer's memory goes from event to event: all but the released RecGRELA's does.

    It does within a row of HyTRec with shuffled gaps too, of which nothing is carried on from call
    to call.
    """
    return isinstance(mixer, GatedDelta) or (isinstance(mixer, RELA) and mixer.causal)


def trace(model: SequenceModel, events: Events) -> dict[str, MixerTrace]:
    """Reads a batch, dropout off, and keeps what its linear mixers held.

    Args:
      model: Any model; what it returns is not changed.
      events: The batch, [B, T], one history a row.

    Returns:
      A trace a pass by name, first to last: "blocks/0", and "blocks/0 loop 2" where a block is
      passed through more than once.

    Raises:
      ValueError: If no mixer of the model has a matrix memory.
    """
    mixers = linear_mixers(model)
    if not mixers:
        raise ValueError(f"{type(model).__name__} has no matrix memory to look into")
    run = nnx.capture(
        lambda model, events: model(events), nnx.Intermediate, method_outputs=nnx.Intermediate
    )
    _, captured = run(model, events)
    passes: dict[str, MixerTrace] = {}
    for path, mixer in mixers:
        outputs: Any = captured
        for key in path:
            outputs = outputs[key]
        traces = _of_rela(outputs) if isinstance(mixer, RELA) else _of_delta(mixer, outputs)
        name = "/".join(map(str, path[:-1]))
        for loop, one in enumerate(traces):
            passes[name if len(traces) == 1 else f"{name} loop {loop + 1}"] = one
    return passes


def _of_delta(mixer: nnx.Module, outputs: Any) -> list[MixerTrace]:
    calls, inputs = outputs["__call__"].get_value(), outputs["inputs"].get_value()
    own = {name: outputs[name].get_value() for name in ("coverage", "removal") if name in outputs}
    if isinstance(mixer, TADN) and mixer.spike_gate is not None:
        own["spike"] = [jax.nn.sigmoid(write.spike) for write, _ in outputs["late"].get_value()]
    traces = []
    for index, ((first, *_), (_, state)) in enumerate(zip(inputs, calls, strict=True)):
        gates = {name: each[index] for name, each in own.items()}
        written = first.beta
        if isinstance(mixer, TADN):
            written = mixer.written(written, gates.get("spike"))
        gates = {"kept": jnp.exp(first.log_decay), "written": written} | gates
        traces.append(MixerTrace(keys=first.key, memory=state.memory, gates=gates))
    return traces


def _of_rela(outputs: Any) -> list[MixerTrace]:
    calls = outputs["attend"].get_value()
    features = outputs["features"].get_value()
    augmented = outputs["augment"].get_value() if "augment" in outputs else [None] * len(calls)
    return [
        MixerTrace(keys=keys, memory=state.key_value, attended=attended, augmented=joined)
        for (*_, keys), (attended, state), joined in zip(features, calls, augmented, strict=True)
    ]
