"""What a model's linear mixers hold while it reads a batch, and which mixers these are."""

from flax import nnx

from linseqrec.events import Events
from linseqrec.layers.gated_delta import GatedDelta
from linseqrec.layers.rela import RELA
from linseqrec.layers.states import MixerTrace, recording
from linseqrec.models.base import SequenceModel
from linseqrec.models.linrec import LinRecAttention
from linseqrec.models.mamba2 import Mamba2Mixer
from linseqrec.models.own_items import OwnItems


def trace(model: SequenceModel, events: Events) -> dict[str, MixerTrace]:
    """Lets a model read a batch, dropout off, and returns what its linear mixers held.

    Args:
      model: The model; of `OwnItems` the model inside it, since the means are no mixer.
      events: The batch, [B, T], one history per row.

    Returns:
      A trace per pass by name, first to last: "blocks/0", and "blocks/0 loop 2" for a second pass
      through the block.

    Raises:
      ValueError: If no mixer of the model has a matrix memory.
    """
    if isinstance(model, OwnItems):
        model = model.model
    with recording() as passes:
        model(events)
    if not passes:
        raise ValueError(f"{type(model).__name__} has no matrix memory to look into")
    names = {id(module): "/".join(map(str, path[:-1])) for path, module in nnx.iter_modules(model)}
    traces: dict[str, list[MixerTrace]] = {}
    for mixer, traced in passes:
        traces.setdefault(names[id(mixer)], []).append(traced)
    return {
        name if len(loops) == 1 else f"{name} loop {loop}": traced
        for name, loops in traces.items()
        for loop, traced in enumerate(loops, start=1)
    }


def linear_mixers(model: SequenceModel) -> list[nnx.Module]:
    """The mixers with a matrix memory, those that a trace is of, first to last."""
    return [
        module
        for _, module in nnx.iter_modules(model)
        if isinstance(module, GatedDelta | RELA | Mamba2Mixer | LinRecAttention)
    ]


def is_recurrent(mixer: nnx.Module) -> bool:
    """Whether a mixer updates its memory event by event: all do, except the released RecGRELA's.

    HyTRec with shuffled gaps counts too: it updates within a row, but carries no state on.
    """
    return not isinstance(mixer, RELA) or mixer.causal
