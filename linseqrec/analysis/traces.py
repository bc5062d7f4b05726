"""Which of a model's parts analyses look into: `SequenceModel.trace` says what those held."""

from flax import nnx

from linseqrec.layers.gated_delta import GatedDelta
from linseqrec.layers.rela import RELA
from linseqrec.models.base import SequenceModel
from linseqrec.models.linrec import LinRecAttention
from linseqrec.models.mamba2 import Mamba2Mixer


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
