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
    """Whether a mixer's memory goes from event to event: all but the released RecGRELA's does.

    It does within a row of HyTRec with shuffled gaps too, of which nothing is carried on from call
    to call.
    """
    return not isinstance(mixer, RELA) or mixer.causal
