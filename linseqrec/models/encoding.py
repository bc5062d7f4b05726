"""What every model returns, and what the training loop asks of one."""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from linseqrec.events import Events


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Encoding:
    """A model's reading of a batch.

    Attributes:
      hidden: [B, T, D]; position t predicts the event after t. Its scores are `hidden @ table.T`.
      losses: Auxiliary losses by name, already weighted, to add to the prediction loss; scalars.
      state: What to pass to the next call to go on from here; None where the model carries none.
      metrics: Scalars to log with the losses; they train nothing.
      counts: What `ChangesAfterStep.after_step` is to know of the batch: sums over its events, so
        that a batch read in parts adds them up. None where there is nothing to know.
    """

    hidden: Float[Array, "B T D"]
    losses: dict[str, Float[Array, ""]]
    state: Any
    metrics: dict[str, Float[Array, ""]] = dataclasses.field(default_factory=dict)
    counts: Any = None


class SequenceModel(Protocol):
    """A model: events in, encoding out, and the table its predictions are scored against."""

    def __call__(
        self, events: Events, state: Any = None, *, dropout_key: PRNGKeyArray | None = None
    ) -> Encoding:
        """Encodes a batch; `dropout_key=None` is evaluation, `state=None` no past."""
        ...

    def item_table(self) -> Float[Array, "N+1 D"]:
        """The float32 output table; row 0 is padding."""
        ...


@runtime_checkable
class ChangesAfterStep(Protocol):
    """A model some of whose state no gradient moves: a training step calls it after its update.

    Such state is an `nnx.Param` that takes no gradient, so that it is trained state like any other:
    saved, restored, and returned by the step.
    """

    def after_step(self, events: Events, counts: Any, key: PRNGKeyArray) -> None:
        """Changes the model in place, within the compiled step.

        Args:
          events: The step's batch.
          counts: The batch's `Encoding.counts`, by the parameters before the update.
          key: Randomness, this step's own.
        """
        ...


@runtime_checkable
class ReadsTimestamps(Protocol):
    """A model's hyperparameters, of a model that may read the log's times."""

    @property
    def reads_timestamps(self) -> list[str]:
        """The settings by which it does, as "FIELD=VALUE"; empty where it does not."""
        ...


@runtime_checkable
class SplitsTime(Protocol):
    """Hyperparameters of a model whose rows may be divided over devices (`mesh.sequence`).

    Each layer of the model that mixes slots must ask `linseqrec.mesh_axes.time_is_split`, and
    exchange between devices what it needs.
    """

    @property
    def splits_time(self) -> bool:
        """Whether this configuration supports it."""
        ...


@runtime_checkable
class ReusesParameters(Protocol):
    """A model's hyperparameters, of a model that takes an event through a parameter repeatedly."""

    def uses(self, name: str) -> int:
        """How often an event goes through the parameter of that name, by `parameter_path`."""
        ...


class ModelConfig(Protocol):
    """A model's hyperparameters: the object that builds it."""

    def build(self, num_items: int, *, rngs: nnx.Rngs, request_time: bool = False) -> SequenceModel:
        """Makes the model with fresh parameters.

        A model that cannot be told request times has no such argument.

        Args:
          num_items: N, of the catalogue.
          rngs: Randomness.
          request_time: Whether the model reads `Events.request_times`.
        """
        ...
