"""The prediction loss: hidden states where predictions are read, against the catalogue."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from linseqrec.data.batch import Batch
from linseqrec.ops.cross_entropy import catalogue_cross_entropy
from linseqrec.ops.negatives import draw_negatives, popularity_proposal
from linseqrec.ops.sampled_losses import binary_cross_entropy, gbce, sampled_softmax

# `(hidden [B, T, D], table [N + 1, D], batch, key) -> Σ weight · loss over the batch's targets`.
PredictionLoss = Callable[[Array, Array, Batch, PRNGKeyArray], Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The training objective.

    Attributes:
      kind: "full": cross-entropy over the whole catalogue; "sampled": over drawn items shared by
        the batch, with logQ correction; "bce": each target against items of its own (SASRec's);
        "gbce": the same, calibrated (gSASRec's).
      negatives: Items drawn, per batch ("sampled") or per target ("bce", "gbce").
      popularity_power: Of the item counts that "sampled" draws by; 0 is uniform, as the others.
      calibration: The t of "gbce".
    """

    kind: Literal["full", "sampled", "bce", "gbce"] = "full"
    negatives: int = 256
    popularity_power: float = 0.0
    calibration: float = 0.75


def make_loss(config: LossConfig, item_counts: Int[np.ndarray, "N+1"]) -> PredictionLoss:
    """The objective as a function.

    Args:
      config: Which one.
      item_counts: Training events of each item, to draw by.

    Returns:
      See `PredictionLoss`; divide by Σ weight for the mean. The key draws negatives.
    """
    if config.kind == "full":

        def full(hidden: Array, table: Array, batch: Batch, key: PRNGKeyArray) -> Array:
            del key
            return catalogue_cross_entropy(
                _read(hidden, batch), table, batch.targets, batch.weights
            )

        return full

    power = config.popularity_power if config.kind == "sampled" else 0.0
    proposal = popularity_proposal(item_counts, power)

    def drawn(hidden: Array, table: Array, batch: Batch, key: PRNGKeyArray) -> Array:
        scored = (_read(hidden, batch), table, batch.targets, batch.weights)
        if config.kind == "sampled":
            shared = draw_negatives(key, proposal, (config.negatives,))
            return sampled_softmax(*scored, shared, proposal.log_q)
        own = draw_negatives(key, proposal, (*batch.targets.shape, config.negatives))
        if config.kind == "bce":
            return binary_cross_entropy(*scored, own)
        return gbce(*scored, own, calibration=config.calibration)

    return drawn


def _read(hidden: Float[Array, "B T D"], batch: Batch) -> Float[Array, "B S D"]:
    """The hidden states at the slots where predictions are read."""
    if batch.read_at is None:
        return hidden
    return jnp.take_along_axis(hidden, batch.read_at[..., None], axis=1)
