"""The prediction loss of a batch, over the whole catalogue or over sampled negative items."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int, PRNGKeyArray

from linseqrec.config_fields import check_fields
from linseqrec.data.rows import Batch
from linseqrec.ops.cross_entropy import catalogue_cross_entropy
from linseqrec.ops.negatives import draw_negatives, popularity_proposal
from linseqrec.ops.sampled_losses import binary_cross_entropy, gbce, sampled_softmax
from linseqrec.sharding import MODEL, batch_spec

# `(hidden [B, T, D], table [N + 1, D], batch, key)` to the sum of weight x loss over the targets.
PredictionLoss = Callable[[Array, Array, Batch, PRNGKeyArray], Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The training objective.

    Attributes:
      kind: "full" is cross-entropy over the whole catalogue. "sampled" is cross-entropy over
        negatives that all targets of the batch share, with logQ correction. "bce" is SASRec's
        binary cross-entropy, with separate negatives for each target. "gbce" is "bce" with the
        calibration of gSASRec.
      negatives: Number of negative items: per batch for "sampled", per target for "bce" and
        "gbce".
      popularity_power: "sampled" draws an item with probability proportional to its number of
        training events (at least 1), raised to this power; 0 is uniform. "bce" and "gbce" draw
        uniformly.
      calibration: The calibration t of "gbce", from 0 ("bce") to 1.
    """

    kind: Literal["full", "sampled", "bce", "gbce"] = "full"
    negatives: int = 256
    popularity_power: float = 0.0
    calibration: float = 0.75

    def __post_init__(self) -> None:
        check_fields(self, counts=("negatives",))


def make_loss(
    config: LossConfig, item_counts: Int[np.ndarray, "N1"], mesh: Mesh | None = None
) -> PredictionLoss:
    """The loss function of a configuration.

    Args:
      config: The configuration.
      item_counts: [N + 1], number of training events of each item.
      mesh: The mesh that splits the batch and the table (`linseqrec.sharding`); the table may then
        end in padding rows. None for one device.

    Returns:
      A function as `PredictionLoss` describes it. It draws negatives with its key and returns the
      weighted sum over targets; divide by the sum of weights for the mean.
    """
    num_items = len(item_counts) - 1
    if config.kind == "full":
        cross_entropy = catalogue_cross_entropy
        if mesh is not None:
            cross_entropy = _split_cross_entropy(mesh, num_items)

        def full(hidden: Array, table: Array, batch: Batch, key: PRNGKeyArray) -> Array:
            del key
            return cross_entropy(_at_targets(hidden, batch), table, batch.targets, batch.weights)

        return full

    power = config.popularity_power if config.kind == "sampled" else 0.0
    proposal = popularity_proposal(item_counts, power)

    def with_negatives(hidden: Array, table: Array, batch: Batch, key: PRNGKeyArray) -> Array:
        arrays = (_at_targets(hidden, batch), table, batch.targets, batch.weights)
        if config.kind == "sampled":
            shared = draw_negatives(key, proposal, (config.negatives,))
            return sampled_softmax(*arrays, shared, proposal.log_q, num_items=num_items)
        separate = draw_negatives(key, proposal, (*batch.targets.shape, config.negatives))
        if config.kind == "bce":
            return binary_cross_entropy(*arrays, separate, num_items=num_items)
        return gbce(*arrays, separate, calibration=config.calibration, num_items=num_items)

    return with_negatives


def _split_cross_entropy(mesh: Mesh, num_items: int) -> Callable[..., Float[Array, ""]]:
    """`catalogue_cross_entropy` for arrays that a mesh splits."""

    def cross_entropy(hidden: Array, table: Array, targets: Array, weights: Array) -> Array:
        by_slot = batch_spec(targets.shape)

        def sum_over_devices(*own_parts: Array) -> Array:
            own_sum = catalogue_cross_entropy(*own_parts, num_items=num_items, axis_name=MODEL)
            return jax.lax.psum(own_sum, (*filter(None, by_slot), MODEL))

        return jax.shard_map(
            sum_over_devices,
            mesh=mesh,
            in_specs=(by_slot, PartitionSpec(MODEL), by_slot, by_slot),
            out_specs=PartitionSpec(),
        )(hidden, table, targets, weights)

    return cross_entropy


def _at_targets(hidden: Float[Array, "B T D"], batch: Batch) -> Float[Array, "B S D"]:
    """The hidden vectors at the slots that predict the batch's targets."""
    if batch.read_at is None:
        return hidden
    return jnp.take_along_axis(hidden, batch.read_at[..., None], axis=1)
