"""`Run`: what an experiment's configuration stands for: its events, model and training step."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array

from linseqrec import sharding
from linseqrec.config import Experiment
from linseqrec.config_fields import ConfigError
from linseqrec.data.pipeline import TrainingBatches
from linseqrec.data.source import Source, load_source
from linseqrec.data.splits import item_counts
from linseqrec.evaluation import queries
from linseqrec.evaluation.evaluator import Evaluator
from linseqrec.evaluation.result import EvaluationResult
from linseqrec.events import Events
from linseqrec.sharding import DATA, SEQUENCE
from linseqrec.training.item_rows import CatchUpRule
from linseqrec.training.loss import make_loss
from linseqrec.training.model import FunctionalModel
from linseqrec.training.optimizer import learning_rate, make_optimizer
from linseqrec.training.step import CompiledStep

SplitName = Literal["validation", "test"]


@dataclasses.dataclass(frozen=True)
class Run:
    """An experiment made concrete, the same for training and for evaluating its checkpoints.

    Attributes:
      experiment: The configuration.
      source: The events, and which of them each split predicts.
      batches: Training batches by step; with several processes, the rows of this one.
      model: The model as functions of its variables.
      num_steps: Length of the run, in steps.
      auc: Whether evaluations add the pooled AUC.
    """

    experiment: Experiment
    source: Source
    batches: TrainingBatches
    model: FunctionalModel
    num_steps: int
    auc: bool = False

    @classmethod
    def of(
        cls,
        experiment: Experiment,
        source: Source | None = None,
        mesh: Mesh | None = None,
        *,
        trains: bool = True,
        auc: bool = False,
    ) -> "Run":
        """Loads the events and builds the model of an experiment.

        Args:
          experiment: The configuration.
          source: The events, if they are at hand already.
          mesh: The devices to divide the work over (`sharding.make_mesh`); None for one device,
            whatever the configuration says.
          trains: Whether the run will be trained, so that the mesh must divide its batches.
          auc: Whether its evaluations add the pooled AUC (`Evaluator`).

        Raises:
          MeshError: If the mesh does not divide the batches, or several processes have none.
          ConfigError: If there is no world of that size, or the model reads times of a log that has
            none, cannot be told known request times, or cannot take rows that are split over
            devices.
          DatasetError: If the folder is no dataset folder, or damaged.
          SplitError: If its events cannot be split so.
          WorldError: If there is no such world.
        """
        data, training = experiment.data, experiment.training
        if mesh is None and jax.process_count() > 1:
            raise sharding.MeshError("several processes need a mesh: pass one over all devices")
        if trains:
            sharding.check_rows(mesh, data.batch_size, training.accumulation_steps)
        process_index, process_count = sharding.process_slice(mesh)

        source = load_source(data) if source is None else source
        _check_splits_time(experiment, mesh)
        sharding.check_slots(mesh, data.row_length(source.dataset))
        if trains and source.dataset.card["time"]["order_only"]:
            _check_reads_no_time(experiment)
        batches = TrainingBatches(
            source.dataset,
            source.split,
            data,
            seed=training.seed,
            process_index=process_index,
            process_count=process_count,
        )
        # A state counts its steps in 32 bits.
        num_steps = min(max(1, round(training.num_epochs * batches.steps_per_epoch)), 2**31 - 1)

        model = FunctionalModel.of(experiment, source.dataset.num_items, mesh)
        return cls(experiment, source, batches, model, num_steps, auc)

    @property
    def evaluate_every(self) -> int:
        """Steps between validations."""
        every = self.experiment.training.evaluate_every * self.batches.steps_per_epoch
        return max(1, round(every))

    @functools.cached_property
    def item_counts(self) -> np.ndarray:
        """Training events of each item, int64 [N + 1]."""
        return item_counts(self.source.dataset, self.source.split)

    @functools.cached_property
    def learning_rate(self) -> optax.Schedule:
        """The learning rate by step; it ends with the run."""
        return learning_rate(self.experiment.optimizer, self.num_steps)

    @functools.cached_property
    def optimizer(self) -> optax.GradientTransformation:
        """The Optax chain."""
        return make_optimizer(self.experiment.optimizer, self.learning_rate)

    @functools.cached_property
    def step(self) -> CompiledStep:
        """The training step, and the state that it starts from."""
        training, mesh = self.experiment.training, self.model.mesh
        loss = make_loss(self.experiment.loss, self.item_counts, mesh)
        catch_up = None
        # Drawn negatives leave most item rows without a gradient.
        if loss.proposal is not None:
            rule = CatchUpRule.of(self.experiment.optimizer, self.learning_rate)
            catch_up = rule if rule.supports(self.model.shapes) else None
        return CompiledStep(
            self.model,
            self.optimizer,
            catch_up,
            prediction_loss=loss,
            seed=training.seed,
            accumulation_steps=training.accumulation_steps,
        )

    @functools.cached_property
    def _evaluators(self) -> dict[str, Evaluator]:
        return {}

    @property
    def padded_lengths(self) -> list[int] | None:
        """Widths of the rows that an evaluation reads; None leaves the choice to the evaluation.

        A model that is not causal may read padding, as the released RecGRELA does. Its rows are
        then as wide as in training, whatever the histories.
        """
        return None if self.experiment.model.causal else [self.batches.length]

    def evaluator(self, split: SplitName) -> Evaluator:
        """The evaluator of the validation or test targets, made when first asked for."""
        if split not in self._evaluators:
            config, mesh = self.experiment.evaluation, self.model.mesh
            length = self.batches.length
            axes = {} if mesh is None else mesh.shape
            self._evaluators[split] = Evaluator(
                self.source.dataset,
                getattr(self.source.split, split),
                max_length=length,
                batch_size=queries.rows_at_once(config.batch_size, length, axes.get(DATA, 1)),
                filter_seen=config.filter_seen,
                ties=config.ties,
                split=split,
                padded_lengths=self.padded_lengths,
                width_multiple=axes.get(SEQUENCE, 1),
                item_counts=self.item_counts,
                auc=self.auc,
                request_times=self.experiment.data.request_time == "known",
            )
        return self._evaluators[split]

    def evaluate(
        self, variables: nnx.State, split: SplitName, *, between: Callable[[], None] | None = None
    ) -> EvaluationResult:
        """Ranks a split's targets.

        Args:
          variables: The model's variables (`TrainState.variables`).
          split: Which targets.
          between: Called before each batch, as often on every process; what it raises ends the
            evaluation.
        """

        def encode(events: Events) -> Array:
            if between is not None:
                between()
            return self.model.encode(variables, events)

        table = self.model.item_table(variables)
        return self.evaluator(split).run(encode, table, self.model.mesh)


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
    if experiment.own_items:
        raise ConfigError(
            f"mesh.sequence is {mesh.shape[SEQUENCE]}, and own_items reads whole rows: set "
            "mesh.sequence to 1 or own_items to false"
        )


def _check_reads_no_time(experiment: Experiment) -> None:
    """Refuses models that read times, of a log without times.

    Such a log's timestamps only count the events, and the model would read them as seconds.
    """
    if experiment.data.request_time == "known":
        raise ConfigError(
            "data.request_time is 'known', and this log has only the order of its events: it must "
            "be 'hidden'"
        )
    model = experiment.model
    if model.reads_timestamps:
        raise ConfigError(
            f"{experiment.name} reads the time between events (model "
            f"{' '.join(model.reads_timestamps)}), but this log has only their order: set the "
            "values of docs/train_on_your_log.md, 'Logs without times'"
        )
