"""`Run`: what an experiment's configuration stands for: its events, model, step and evaluators."""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float

from linseqrec.config import ConfigError, Experiment
from linseqrec.data.pipeline import TrainingBatches, training_batches
from linseqrec.data.source import Source, load_source
from linseqrec.evaluation.evaluator import Evaluator
from linseqrec.evaluation.floors import item_counts
from linseqrec.evaluation.result import EvaluationResult
from linseqrec.models.encoding import SequenceModel
from linseqrec.training.loss import make_loss
from linseqrec.training.optimizer import make_optimizer
from linseqrec.training.step import TrainState, init_state, make_train_step

SplitName = Literal["validation", "test"]


def split_model(model: SequenceModel) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """A model's structure, its parameters, and its other variables; `nnx.merge` joins them."""
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]
    return graphdef, params, rest


@dataclasses.dataclass(frozen=True)
class Run:
    """An experiment made concrete, the same for training and for evaluating its checkpoints.

    Attributes:
      experiment: The configuration.
      source: Its events.
      batches: Training batches by step.
      num_steps: Length of the run, in steps.
      evaluate_every: Steps between validations.
      graphdef: The model's structure.
      rest: Its variables that are not parameters.
      initial_params: Its fresh parameters.
      optimizer: The Optax chain.
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

    @classmethod
    def of(cls, experiment: Experiment, source: Source | None = None) -> "Run":
        """Loads the events and builds the model of an experiment.

        Args:
          experiment: The configuration.
          source: Its events, if they are at hand already.

        Raises:
          ConfigError: If the optimizer's settings do not fit the run's length.
          DatasetError: If the folder is no dataset folder, or damaged.
        """
        data, training = experiment.data, experiment.training
        source = load_source(data) if source is None else source
        batches = training_batches(
            source.dataset,
            source.split,
            plan=data.plan,
            length=data.length,
            batch_size=data.batch_size,
            seed=training.seed,
        )
        num_steps = max(1, round(training.num_epochs * batches.steps_per_epoch))
        model = experiment.model.build(source.dataset.num_items, rngs=nnx.Rngs(training.seed))
        graphdef, params, rest = split_model(model)
        try:
            optimizer = make_optimizer(experiment.optimizer, num_steps)
        except ValueError as error:
            raise ConfigError(str(error)) from error
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
        )

    def initial_state(self) -> TrainState:
        """The training state before the first step."""
        # Copied: the step consumes its state, and the parameters may be asked for again.
        return init_state(jax.tree.map(jnp.copy, self.initial_params), self.optimizer)

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
            make_loss(self.experiment.loss, self.item_counts),
            seed=self.experiment.training.seed,
            accumulation_steps=self.experiment.training.accumulation_steps,
        )
        return jax.jit(step, donate_argnums=0)

    @functools.cached_property
    def encode(self) -> Any:
        """The compiled model, `(params, events) -> hidden [B, T, D]`, dropout off."""
        return jax.jit(
            lambda params, events: nnx.merge(self.graphdef, params, self.rest)(events).hidden
        )

    @functools.cached_property
    def _evaluators(self) -> dict[str, Evaluator]:
        return {}

    def evaluator(self, split: SplitName) -> Evaluator:
        """The evaluator of the validation or test targets, made when first asked for."""
        if split not in self._evaluators:
            config = self.experiment.evaluation
            self._evaluators[split] = Evaluator(
                self.source.dataset,
                getattr(self.source.split, split),
                max_length=self.experiment.data.length,
                batch_size=config.batch_size,
                filter_seen=config.filter_seen,
                ties=config.ties,
                split=split,
                item_counts=self.item_counts,
            )
        return self._evaluators[split]

    def evaluate(self, params: nnx.State, split: SplitName) -> EvaluationResult:
        """Ranks a split's targets with the given parameters."""
        encode = functools.partial(self.encode, params)
        return self.evaluator(split).run(encode, self.item_table(params))

    def item_table(self, params: nnx.State) -> Float[Array, "N+1 D"]:
        """The model's output table."""
        return nnx.merge(self.graphdef, params, self.rest).item_table()
