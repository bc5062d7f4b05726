"""What a model is: its two base classes, what is asked of them, and what a model returns."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from linseqrec.config_fields import Config
from linseqrec.events import Events
from linseqrec.layers.request_time import RequestTime
from linseqrec.layers.standard import ItemEmbedding

# "auto" is bfloat16 on an accelerator and float32 on a CPU (`ModelConfig.compute_dtype`).
Dtype = Literal["auto", "float32", "bfloat16"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NoState:
    """The state of a model that carries none from call to call."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Encoding:
    """A model's reading of a batch.

    Attributes:
      hidden: [B, T, D]; position t predicts the event after t. Its scores are `hidden @ table.T`.
      losses: Auxiliary losses by name, already weighted, to add to the prediction loss; scalars,
        means over events. They must be finite for a part of a batch that holds no event, too.
      state: What to pass to the next call to go on from here.
      metrics: Scalars to log with the losses; they train nothing.
      counts: What `SequenceModel.after_step` reads of the batch: sums over its events, so that the
        counts of a batch that is read in parts are the sum over the parts.
    """

    hidden: Float[Array, "B T D"]
    losses: dict[str, Float[Array, ""]] = dataclasses.field(default_factory=dict)
    state: Any = NoState()
    metrics: dict[str, Float[Array, ""]] = dataclasses.field(default_factory=dict)
    counts: Any = ()


class HiddenRequestTime(nnx.Module):
    """Stands for `RequestTime` where request times are hidden: tells a model nothing."""

    def visible_events(self, events: Events) -> Events:
        """The events without request times, should they carry some."""
        return dataclasses.replace(events, request_times=None)

    def enter(self, x: Float[Array, "B T D"], events: Events) -> Float[Array, "B T D"]:
        """The embedded events as they are."""
        del events
        return x

    def leave(self, hidden: Float[Array, "B T D"], events: Events) -> Float[Array, "B T D"]:
        """The hidden vectors as they are."""
        del events
        return hidden


def request_layer(
    known: bool, width: int, *, dtype: DTypeLike, rngs: nnx.Rngs
) -> RequestTime | HiddenRequestTime:
    """`RequestTime` if request times are known, else `HiddenRequestTime`.

    Call it after all other layers are made, so that these draw the same fresh parameters in both
    cases.
    """
    return RequestTime(width, dtype=dtype, rngs=rngs) if known else HiddenRequestTime()


class SequenceModel(nnx.Module):
    """A model: events in, encoding out, and the table that its predictions are scored against.

    A model implements `encode`. If it carries a state from call to call, it also implements
    `initial_state`. The other methods have defaults.

    Attributes:
      embedding: The item table, which the default `item_table` ties to the output.
    """

    embedding: ItemEmbedding

    def __call__(
        self, events: Events, state: Any = None, *, dropout_key: PRNGKeyArray | None = None
    ) -> Encoding:
        """Encodes a batch.

        Args:
          events: The batch, [B, T].
          state: The past of each row's first history; None is no past.
          dropout_key: Randomness of dropout; None is evaluation.

        Returns:
          The encoding; its state is the one after each row's last history.

        Raises:
          ValueError: If a state is given to a model that carries none.
          TypeError: If `encode` returns no `Encoding`.
        """
        carries = self.carries_state
        if not carries and not (state is None or isinstance(state, NoState)):
            raise ValueError(
                f"{type(self).__name__}, as configured, reads whole rows: it carries no state"
            )
        if state is None or not carries:
            state = self.initial_state(len(events.items))
        encoding = self.encode(events, state, dropout_key=dropout_key)
        if not isinstance(encoding, Encoding):
            # Under jit an array is a tracer, whose class says nothing to a user.
            kind = "array" if isinstance(encoding, jax.Array) else type(encoding).__name__
            raise TypeError(
                f"{type(self).__name__}.encode must return a linseqrec.models.base.Encoding, and "
                f"returned this type: {kind}; write `return Encoding(hidden, state=state)`, with "
                "hidden states [B, T, D]"
            )
        return encoding if carries else dataclasses.replace(encoding, state=NoState())

    def encode(self, events: Events, state: Any, *, dropout_key: PRNGKeyArray | None) -> Encoding:
        """Encodes a batch that goes on from a state; see `__call__`.

        Training on drawn negatives replaces each item id by a row number of a smaller table. So use
        ids only to look items up in an `ItemEmbedding`, and to compare them with each other and
        with 0.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement encode")

    def initial_state(self, batch_size: int) -> Any:
        """The state of `batch_size` rows before any event.

        Its arrays are NumPy zeros where they can be (see `layers/states.py`).
        """
        del batch_size
        return NoState()

    @property
    def carries_state(self) -> bool:
        """Whether a call can go on from the state of another."""
        return not isinstance(self.initial_state(1), NoState)

    def item_table(self) -> Float[Array, "N1 D"]:
        """The output table, float32; row 0 is padding."""
        return self.embedding.table[...]

    def after_step(self, events: Events, counts: Any, key: PRNGKeyArray) -> None:
        """Changes the model in place after a training step's update, within the compiled step.

        For running statistics and other state that no gradient moves. Make it an `nnx.BatchStat`
        (any variable but `nnx.Param` will do): the run saves and restores it, and the optimizer
        leaves it alone. `encode` returns what a statistic needs as counts; a training step refuses
        a model whose `encode` writes into a variable.

        Args:
          events: The step's batch.
          counts: The batch's `Encoding.counts`, by the parameters before the update.
          key: Randomness, this step's own.
        """
        del events, counts, key


class ModelConfig(Config):
    """Base of the models' configurations: frozen dataclasses of hyperparameters that build a model.

    The attributes below have defaults. A configuration overrides a default by a field, a class
    attribute or a property of the same name.

    Attributes:
      dtype: What the model computes in; its parameters are float32. "auto" leaves the choice to
        `compute_dtype`. Without a field, a model of one's own is taken to compute in float32.
      causal: Whether a position sees only its past, so that all positions of a row can be trained
        on at once. A model that is not causal needs the plan "prefixes".
      longest_row: The most slots of a row that the model reads; None for any number.
      reads_timestamps: The settings by which the model reads the log's times, as "FIELD=VALUE".
      reads_request_times: Whether `build` takes `request_time=True`.
      splits_time: Whether rows may be divided over devices (`mesh.sequence`). Each layer of the
        model that mixes slots must then ask `linseqrec.sharding.time_is_split`, and exchange
        between devices what it needs.
    """

    dtype: Dtype = "float32"
    causal: bool = True
    reads_request_times: bool = False

    @property
    def compute_dtype(self) -> jnp.dtype:
        """What the model computes in where this process runs it.

        "auto" is bfloat16 on an accelerator and float32 on a CPU. So evaluation and serving follow
        their own device: a model that was trained on a GPU computes in float32 on a CPU, with the
        same float32 parameters. "float32" and "bfloat16" hold on every device. A run records what
        it computed in as "compute_dtype" in `environments.jsonl` and `results.json`.
        """
        if self.dtype != "auto":
            return jnp.dtype(self.dtype)
        return jnp.dtype("float32" if jax.default_backend() == "cpu" else "bfloat16")

    @property
    def longest_row(self) -> int | None:
        """See the class."""
        return None

    @property
    def reads_timestamps(self) -> list[str]:
        """See the class."""
        return []

    @property
    def splits_time(self) -> bool:
        """See the class."""
        return False

    def uses(self, name: str) -> int:
        """How often an event goes through the parameter of that name, by `parameter_path`."""
        del name
        return 1

    def build(self, num_items: int, *, rngs: nnx.Rngs, request_time: bool = False) -> SequenceModel:
        """Makes the model with fresh parameters.

        Args:
          num_items: N, of the catalogue.
          rngs: Randomness.
          request_time: Whether the model reads `Events.request_times`.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement build")
