"""The prediction loss of a batch, over the whole catalogue or over sampled negative items."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int, PRNGKeyArray

from linseqrec.config_fields import Config, ConfigError, Count, Probability
from linseqrec.data.rows import Batch
from linseqrec.ops.cross_entropy import catalogue_cross_entropy
from linseqrec.ops.negatives import Proposal, draw_negatives, popularity_proposal
from linseqrec.ops.sampled_losses import binary_cross_entropy, gbce_power, sampled_softmax
from linseqrec.sharding import MODEL, batch_spec

# Up to as many items, "auto" is the full loss.
_FULL_ITEMS = 50_000


@dataclasses.dataclass(frozen=True)
class LossConfig(Config):
    """The training objective.

    Attributes:
      kind: "full" is cross-entropy over the whole catalogue. "sampled" is cross-entropy over
        negatives that all targets of a microbatch share, with logQ correction. "bce" is SASRec's
        binary cross-entropy, with separate negatives for each target. "gbce" is "bce" with the
        calibration of gSASRec. "auto" is "full" for up to 50,000 items, and "sampled" beyond.
      negatives: Number of negative items: per microbatch for "sampled" (with
        `training.accumulation_steps=1` that is the batch), per target for "bce" and "gbce".
      popularity_power: "sampled" draws an item with probability proportional to its number of
        training events (at least 1), raised to this power; 0 is uniform. "bce" and "gbce" draw
        uniformly.
      calibration: The calibration t of "gbce", from 0 ("bce") to 1.
    """

    kind: Literal["full", "sampled", "bce", "gbce", "auto"] = "full"
    negatives: Count = 256
    popularity_power: float = 0.0
    calibration: Probability = 0.75

    def for_catalogue(self, num_items: int) -> "LossConfig":
        """The configuration with the kind that "auto" means for a catalogue of `num_items`."""
        if self.kind != "auto":
            return self
        return dataclasses.replace(self, kind="full" if num_items <= _FULL_ITEMS else "sampled")


@dataclasses.dataclass(frozen=True)
class PredictionLoss:
    """The objective of a run, over the whole catalogue or over drawn items (`make_loss`).

    Attributes:
      config: The configuration.
      num_items: Size of the catalogue, N.
      proposal: What negatives are drawn from; None for the full loss.
      cross_entropy: The full loss, `catalogue_cross_entropy` or its form for a mesh.
    """

    config: LossConfig
    num_items: int
    proposal: Proposal | None
    cross_entropy: Callable[..., Float[Array, ""]]

    @property
    def title(self) -> str:
        """What `kind="auto"` stands for, and over how many items."""
        if self.proposal is None:
            return f"cross-entropy over all {self.num_items:,} items"
        drawn = f"{self.config.negatives:,} drawn items of {self.num_items:,}"
        return f"cross-entropy over {drawn} a batch, logQ corrected"

    def draw(self, key: PRNGKeyArray, shape: tuple[int, ...]) -> Int[Array, "..."]:
        """The negatives of targets of a shape [B, S]: [K], or [B, S, K]; the full loss has none."""
        if self.proposal is None:
            return jnp.zeros(0, jnp.int32)
        leading = () if self.config.kind == "sampled" else shape
        return draw_negatives(key, self.proposal, (*leading, self.config.negatives))

    def __call__(
        self,
        hidden: Float[Array, "B T D"],
        table: Float[Array, "N1 D"],
        batch: Batch,
        negatives: Int[Array, "..."],
        rows: Int[Array, "U"] | None = None,
    ) -> Float[Array, ""]:
        """The sum of weight x loss over the targets; divided by the sum of weights, their mean.

        Args:
          hidden: The model's output.
          table: The item vectors; on a mesh it may end in rows of padding.
          batch: The targets and their weights.
          negatives: What `draw` gave.
          rows: The item of each row, if the table holds a part of the catalogue; targets and
            negatives are then row numbers. None: the table holds the whole catalogue.
        """
        arrays = (_at_targets(hidden, batch), table, batch.targets, batch.weights)
        if self.proposal is None:
            return self.cross_entropy(*arrays)
        num_items, log_q = self.num_items, self.proposal.log_q
        if rows is not None:
            num_items, log_q = len(rows) - 1, log_q[rows]
        if self.config.kind == "sampled":
            return sampled_softmax(*arrays, negatives, log_q, num_items=num_items)
        power = 1.0
        if self.config.kind == "gbce":
            power = gbce_power(self.config.negatives, self.num_items, self.config.calibration)
        return binary_cross_entropy(*arrays, negatives, power=power, num_items=num_items)


def make_loss(
    config: LossConfig, item_counts: Int[np.ndarray, "N1"], mesh: Mesh | None = None
) -> PredictionLoss:
    """The loss of a configuration.

    Args:
      config: The configuration.
      item_counts: [N + 1], number of training events of each item.
      mesh: The mesh that splits the batch and the table (`linseqrec.sharding`); None for one
        device.

    Raises:
      ConfigError: "gbce" draws more negatives than there are other items, or the power of
        popularity gives no distribution.
    """
    num_items = len(item_counts) - 1
    config = config.for_catalogue(num_items)
    if config.kind == "gbce" and config.negatives > num_items - 1:
        raise ConfigError(
            f"loss.negatives is {config.negatives}: loss.kind=gbce takes at most {num_items - 1} "
            f"of a catalogue of {num_items:,} items"
        )
    if config.kind == "full":
        split = catalogue_cross_entropy if mesh is None else _split_cross_entropy(mesh, num_items)
        return PredictionLoss(config, num_items, None, split)
    power = config.popularity_power if config.kind == "sampled" else 0.0
    try:
        proposal = popularity_proposal(item_counts, power)
    except ValueError as error:
        raise ConfigError(f"loss.popularity_power is {power}: {error}") from error
    return PredictionLoss(config, num_items, proposal, catalogue_cross_entropy)


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
