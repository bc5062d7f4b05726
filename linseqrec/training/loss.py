"""The prediction loss: hidden states where predictions are read, against the catalogue."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int, PRNGKeyArray

from linseqrec.config_checks import check_fields
from linseqrec.data.batch import Batch
from linseqrec.mesh_axes import MODEL
from linseqrec.ops.cross_entropy import catalogue_cross_entropy
from linseqrec.ops.negatives import draw_negatives, popularity_proposal
from linseqrec.ops.sampled_losses import binary_cross_entropy, gbce, sampled_softmax
from linseqrec.sharding import batch_spec

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

    def __post_init__(self) -> None:
        check_fields(self, counts=("negatives",))


def make_loss(
    config: LossConfig, item_counts: Int[np.ndarray, "N+1"], mesh: Mesh | None = None
) -> PredictionLoss:
    """The objective as a function.

    Args:
      config: Which one.
      item_counts: Training events of each item, to draw by.
      mesh: Where batch and table are split, and the table may be padded (`linseqrec.sharding`);
        None for one device.

    Returns:
      See `PredictionLoss`; divide by Σ weight for the mean. The key draws negatives.
    """
    num_items = len(item_counts) - 1
    if config.kind == "full":
        cross_entropy = catalogue_cross_entropy
        if mesh is not None:
            cross_entropy = _split_cross_entropy(mesh, num_items)

        def full(hidden: Array, table: Array, batch: Batch, key: PRNGKeyArray) -> Array:
            del key
            return cross_entropy(_read(hidden, batch), table, batch.targets, batch.weights)

        return full

    power = config.popularity_power if config.kind == "sampled" else 0.0
    proposal = popularity_proposal(item_counts, power)

    def drawn(hidden: Array, table: Array, batch: Batch, key: PRNGKeyArray) -> Array:
        scored = (_read(hidden, batch), table, batch.targets, batch.weights)
        if config.kind == "sampled":
            shared = draw_negatives(key, proposal, (config.negatives,))
            return sampled_softmax(*scored, shared, proposal.log_q, num_items=num_items)
        own = draw_negatives(key, proposal, (*batch.targets.shape, config.negatives))
        if config.kind == "bce":
            return binary_cross_entropy(*scored, own, num_items=num_items)
        return gbce(*scored, own, calibration=config.calibration, num_items=num_items)

    return drawn


def _split_cross_entropy(mesh: Mesh, num_items: int) -> Callable[..., Float[Array, ""]]:
    """`catalogue_cross_entropy`, each device with its own tokens and its own part of the table."""

    def split(hidden: Array, table: Array, targets: Array, weights: Array) -> Array:
        tokens = batch_spec(targets.shape)

        def share(*own: Array) -> Array:
            summed = catalogue_cross_entropy(*own, num_items=num_items, axis_name=MODEL)
            return jax.lax.psum(summed, (*filter(None, tokens), MODEL))

        return jax.shard_map(
            share,
            mesh=mesh,
            in_specs=(tokens, PartitionSpec(MODEL), tokens, tokens),
            out_specs=PartitionSpec(),
        )(hidden, table, targets, weights)

    return split


def _read(hidden: Float[Array, "B T D"], batch: Batch) -> Float[Array, "B S D"]:
    """The hidden states at the slots where predictions are read."""
    if batch.read_at is None:
        return hidden
    return jnp.take_along_axis(hidden, batch.read_at[..., None], axis=1)
