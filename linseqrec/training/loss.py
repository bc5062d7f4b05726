"""The prediction loss: hidden states where predictions are read, against the catalogue."""

import dataclasses
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from linseqrec.data.batch import Batch
from linseqrec.ops.cross_entropy import catalogue_cross_entropy


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The training objective.

    Attributes:
      kind: "full" cross-entropy over the catalogue.
    """

    kind: Literal["full"] = "full"


def prediction_loss(
    hidden: Float[Array, "B T D"],
    table: Float[Array, "N+1 D"],
    batch: Batch,
    config: LossConfig,
    key: PRNGKeyArray,
) -> Float[Array, ""]:
    """Σ weight · loss over the batch's targets; divide by Σ weight for the mean."""
    if batch.read_at is not None:
        hidden = jnp.take_along_axis(hidden, batch.read_at[..., None], axis=1)
    return catalogue_cross_entropy(hidden, table, batch.targets, batch.weights)
