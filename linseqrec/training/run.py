"""`Run`: what an experiment's configuration stands for: its events, model, step and evaluators."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from linseqrec import sharding
from linseqrec.config import ConfigError, Experiment
from linseqrec.data.batch import Batch
from linseqrec.data.pipeline import TrainingBatches, training_batches
from linseqrec.data.source import Source, load_source
from linseqrec.evaluation import queries
from linseqrec.evaluation.evaluator import Evaluator
from linseqrec.evaluation.floors import item_counts
from linseqrec.evaluation.result import EvaluationResult
from linseqrec.events import Events
from linseqrec.mesh_axes import DATA, SEQUENCE, while_tracing
from linseqrec.models.base import SequenceModel
from linseqrec.training.loss import make_loss
from linseqrec.training.optimizer import make_optimizer
from linseqrec.training.step import TrainState, init_state, make_train_step

SplitName = Literal["validation", "test"]


def split_model(model: SequenceModel) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """A model's structure, its parameters, and its other variables; `nnx.merge` joins them."""
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]
    return graphdef, params, rest


def build_model(experiment: Experiment, num_items: int) -> SequenceModel:
    """An experiment's model with fresh parameters.

    Args:
      experiment: The configuration.
      num_items: Of the catalogue.

    Raises:
      ConfigError: If request times are known and the model cannot be told of them.
    """
    known = experiment.data.request_time == "known"
    if known and not experiment.model.reads_request_times:
        raise ConfigError(
            f"data.request_time is 'known', but {type(experiment.model).__name__} has "
            "reads_request_times=False: the model cannot be told request times. Let its build make "
            "the layer of linseqrec.layers.request_time and set reads_request_times = True, or set "
            "data.request_time to 'hidden'"
        )
    rngs = nnx.Rngs(experiment.training.seed)
    # A model that reads no request times may have a build without the argument.
    told = {"request_time": True} if known else {}
    return experiment.model.build(num_items, rngs=rngs, **told)


@dataclasses.dataclass(frozen=True)
class Run:
    """An experiment made concrete, the same for training and for evaluating its checkpoints.

    Attributes:
      experiment: The configuration.
      source: Its events.
      batches: Training batches by step; of several processes, this one's rows of them.
      num_steps: Length of the run, in steps.
      evaluate_every: Steps between validations.
      graphdef: The model's structure.
      rest: Its variables that are not parameters.
      initial_params: Its fresh parameters.
      optimizer: The Optax chain.
      mesh: Devices that batches and item table are divided over; None for one device.
      shapes: Of those arrays of the training state that the mesh pads, by name, without padding.
    """

    experiment: Experiment
    source: Source
    batches: TrainingBatches
    num_steps: int
    evaluate_every: int
    graphdef: nnx.GraphDef
    rest: Any
    initial_params: nnx.State
    optimizer: optax.GradientTransformation
    mesh: Mesh | None
    shapes: dict[str, tuple[int, ...]]

    @classmethod
    def of(
        cls,
        experiment: Experiment,
        source: Source | None = None,
        mesh: Mesh | None = None,
        *,
        trains: bool = True,
    ) -> "Run":
        """Loads the events and builds the model of an experiment.

        Args:
          experiment: The configuration.
          source: Its events, if they are at hand already.
          mesh: The devices to divide the work over (`sharding.make_mesh`); None for one alone,
            whatever the configuration says.
          trains: Whether it will be trained, so that the mesh must divide its batches.

        Raises:
          MeshError: If the mesh does not divide the batches, or several processes have none.
          ConfigError: If the optimizer's settings do not fit the run's length, the model reads
            times of a log that has none, cannot be told known request times, or cannot take rows
            that are split over devices.
          DatasetError: If the folder is no dataset folder, or damaged.
          SplitError: If its events cannot be split so.
          WorldError: If there is no such world, or none of that size.
        """
        data, training = experiment.data, experiment.training
        if mesh is None and jax.process_count() > 1:
            raise sharding.MeshError("several processes need a mesh over the devices of all")
        if trains:
            sharding.check_rows(mesh, data.batch_size, training.accumulation_steps)
        process_index, process_count = sharding.rows_read(mesh)
        source = load_source(data) if source is None else source
        length = data.row_length(source.dataset)
        _check_splits_time(experiment, mesh)
        sharding.check_slots(mesh, length)
        if trains and source.dataset.card["time"]["order_only"]:
            _check_reads_no_time(experiment)
        batches = training_batches(
            source.dataset,
            source.split,
            plan=data.plan,
            length=length,
            stride=data.stride,
            phase=data.phase,
            batch_size=data.batch_size,
            seed=training.seed,
            process_index=process_index,
            process_count=process_count,
            request_times=data.request_time == "known",
        )
        num_steps = max(1, round(training.num_epochs * batches.steps_per_epoch))
        # A table that is to be divided need not fit on any one of the devices.
        host = contextlib.nullcontext()
        if mesh is not None:
            host = jax.default_device(jax.local_devices(backend="cpu")[0])
        with host:
            model = build_model(experiment, source.dataset.num_items)
        graphdef, params, rest = split_model(model)
        try:
            optimizer = make_optimizer(experiment.optimizer, num_steps)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        shapes: dict[str, tuple[int, ...]] = {}
        if mesh is not None:
            whole = jax.eval_shape(lambda: init_state(params, optimizer))
            shapes = sharding.shapes_before_padding(whole, mesh)
            params = sharding.place(params, mesh)
            # Constants of the compiled functions, which may not be arrays of several processes.
            rest = jax.tree.map(np.asarray, rest)
        return cls(
            experiment=experiment,
            source=source,
            batches=batches,
            num_steps=num_steps,
            evaluate_every=max(1, round(training.evaluate_every * batches.steps_per_epoch)),
            graphdef=graphdef,
            rest=rest,
            initial_params=params,
            optimizer=optimizer,
            mesh=mesh,
            shapes=shapes,
        )

    def initial_state(self) -> TrainState:
        """The training state before the first step."""

        def make(params: nnx.State) -> TrainState:
            # Copied: the step consumes its state, and the parameters may be asked for again.
            return init_state(jax.tree.map(jnp.copy, params), self.optimizer)

        if self.mesh is None:
            return make(self.initial_params)
        return jax.jit(make, out_shardings=self._state_shardings)(self.initial_params)

    @functools.cached_property
    def _state_shardings(self) -> Any:
        assert self.mesh is not None
        shapes = jax.eval_shape(lambda: init_state(self.initial_params, self.optimizer))
        return sharding.state_shardings(shapes, self.mesh)

    @functools.cached_property
    def item_counts(self) -> np.ndarray:
        """[N + 1], training events of each item."""
        return item_counts(self.source.dataset, self.source.split)

    @functools.cached_property
    def train_step(self) -> Any:
        """The compiled step, `(state, batch) -> (state, metrics)`; it consumes its state."""
        step = make_train_step(
            self.graphdef,
            self.rest,
            self.optimizer,
            make_loss(self.experiment.loss, self.item_counts, self.mesh),
            seed=self.experiment.training.seed,
            accumulation_steps=self.experiment.training.accumulation_steps,
            mesh=self.mesh,
        )
        if self.mesh is None:
            return jax.jit(step, donate_argnums=0)
        return jax.jit(
            step,
            donate_argnums=0,
            in_shardings=(self._state_shardings, None),
            out_shardings=(self._state_shardings, sharding.replicated(self.mesh)),
        )

    def place_batch(self, batch: Batch) -> Batch:
        """A batch of `batches` where the step wants it: on its devices, the whole of all rows."""
        if self.mesh is None:
            return batch
        return sharding.place_batch(batch, self.mesh)

    @functools.cached_property
    def encode(self) -> Any:
        """The compiled model, `(params, events) -> hidden [B, T, D]`, dropout off."""
        mesh = self.mesh

        def encode(params: nnx.State, events: Events) -> Array:
            with while_tracing(mesh):
                return nnx.merge(self.graphdef, params, self.rest)(events).hidden

        if mesh is None:
            return jax.jit(encode)
        compiled = jax.jit(encode, out_shardings=sharding.by_slots(mesh))
        return lambda params, events: compiled(params, sharding.place_whole_batch(events, mesh))

    @functools.cached_property
    def _evaluators(self) -> dict[str, Evaluator]:
        return {}

    def evaluator(self, split: SplitName) -> Evaluator:
        """The evaluator of the validation or test targets, made when first asked for."""
        if split not in self._evaluators:
            config = self.experiment.evaluation
            length = self.batches.length
            axes = {} if self.mesh is None else self.mesh.shape
            devices = axes.get(DATA, 1)
            self._evaluators[split] = Evaluator(
                self.source.dataset,
                getattr(self.source.split, split),
                max_length=length,
                batch_size=queries.rows_at_once(config.batch_size, length, devices),
                filter_seen=config.filter_seen,
                ties=config.ties,
                split=split,
                width_multiple=axes.get(SEQUENCE, 1),
                item_counts=self.item_counts,
                request_times=self.experiment.data.request_time == "known",
            )
        return self._evaluators[split]

    def evaluate(
        self, params: nnx.State, split: SplitName, *, between: Callable[[], None] | None = None
    ) -> EvaluationResult:
        """Ranks a split's targets.

        Args:
          params: The model's parameters.
          split: Which targets.
          between: Called before each batch, as often on every process; what it raises ends the
            evaluation.
        """

        def encode(events: Events) -> Array:
            if between is not None:
                between()
            return self.encode(params, events)

        return self.evaluator(split).run(encode, self.item_table(params), self.mesh)

    def item_table(self, params: nnx.State) -> Float[Array, "N+1 D"]:
        """The model's output table; on a mesh split by rows, and padded."""
        return nnx.merge(self.graphdef, params, self.rest).item_table()


def _check_splits_time(experiment: Experiment, mesh: Mesh | None) -> None:
    """Refuses `mesh.sequence` for models whose layers would make XLA gather whole rows."""
    if mesh is None or mesh.shape[SEQUENCE] == 1:
        return
    model = experiment.model
    if not model.splits_time:
        raise ConfigError(
            f"mesh.sequence is {mesh.shape[SEQUENCE]}, and {type(model).__name__} does "
            "not say that its layers take rows that are split over devices (splits_time): set "
            "mesh.sequence to 1"
        )


def _check_reads_no_time(experiment: Experiment) -> None:
    """A model that read the places in a log without times as seconds would seem to need no time."""
    if experiment.data.request_time == "known":
        raise ConfigError(
            "data.request_time is 'known', and this log has only the order of its events: it must "
            "be 'hidden'"
        )
    model = experiment.model
    if model.reads_timestamps:
        raise ConfigError(
            f"{experiment.name} reads the time between events, by model "
            f"{' '.join(model.reads_timestamps)}, and this log has only their order; which "
            "other values read none is in the README, under 'Your own log'"
        )
