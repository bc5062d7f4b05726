"""The experiment's typed configuration: frozen dataclasses, which check their own fields."""

import dataclasses
import re
from typing import Annotated

from linseqrec.config_fields import (
    Config,
    Count,
    CountOrZero,
    Limit,
    NotNegative,
    Positive,
    require,
)
from linseqrec.data.source import DataConfig
from linseqrec.evaluation.ranks import FilterSeen, Ties
from linseqrec.models.base import ModelConfig
from linseqrec.models.recgrela import RecGRELAConfig
from linseqrec.sharding import MeshConfig
from linseqrec.training.loss import LossConfig
from linseqrec.training.optimizer import OptimizerConfig

# JAX makes keys of 32 bits: greater seeds would repeat the parameters of others.
_SEEDS = Limit("at least 0 and below 2^32", lambda value: 0 <= value < 2**32)


@dataclasses.dataclass(frozen=True)
class TrainingConfig(Config):
    """How long to train, and how often to look.

    Attributes:
      num_epochs: The run's length, in passes over the training targets.
      max_minutes: The time of a whole training, validations included; 0 for no limit. The run
        measures at its start how many steps fit, and the schedule ends with the last of them.
      evaluate_every: Epochs (fractions allowed) between validations; each one saves a checkpoint.
      save_minutes: Minutes after which a checkpoint is saved between validations, too.
      patience: Validations without a better NDCG@10 before the run stops; 0 never stops early.
      accumulation_steps: Parts a batch is split into, one gradient each, to save memory.
      log_every: Steps between training metrics.
      seed: Seed of the parameters and of training's random draws.
    """

    num_epochs: Positive = 10.0
    max_minutes: NotNegative = 0.0
    evaluate_every: Positive = 1.0
    save_minutes: NotNegative = 10.0
    patience: CountOrZero = 0
    accumulation_steps: Count = 1
    log_every: Count = 50
    seed: Annotated[int, _SEEDS] = 0


@dataclasses.dataclass(frozen=True)
class EvaluationConfig(Config):
    """The protocol of validation and test: full ranking over the catalogue.

    Attributes:
      filter_seen: Whether items of the user's history leave the ranking: "none" or "all". Both may
        be asked for; the first one selects the model.
      batch_size: Users a batch at most, fewer where they would take too much memory
        (`evaluation.queries.rows_at_once`); changes no metric.
      ties: How equal scores rank, "mean" or "pessimistic".
    """

    filter_seen: tuple[FilterSeen, ...] = ("none",)
    batch_size: Count = 256
    ties: Ties = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        filters = self.filter_seen
        distinct = 0 < len(filters) == len(set(filters))
        require(distinct, "filter_seen", filters, "'none', 'all', or these two")


@dataclasses.dataclass(frozen=True)
class Experiment(Config):
    """Everything a run depends on.

    Attributes:
      name: For tables and figures.
      note: What a reader of the results must know (synthetic data, imputed timestamps, ...).
      model: The config object that builds the model.
      own_items: Whether scores start in favour of the items that the user had before
        (`linseqrec.models.own_items`), for logs in which users repeat items.
      data: The log, its split, and the rows it is cut into.
      loss: The training objective.
      optimizer: AdamW's hyperparameters.
      training: How long, and how often to validate.
      evaluation: The protocol of validation and test.
      mesh: How devices share the work; it changes results by rounding only.
    """

    name: str = "recgrela"
    note: str = ""
    model: ModelConfig = RecGRELAConfig()
    own_items: bool = False
    data: DataConfig = DataConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        is_baseline = re.fullmatch(r"oracle|.*popularity|.*markov.*", self.name.lower())
        require(not is_baseline, "name", self.name, "a name that no baseline in the tables has")
        data, steps, longest = self.data, self.training.accumulation_steps, self.model.longest_row
        want = f"a divisor of data.batch_size, {data.batch_size}"
        require(data.batch_size % steps == 0, "training.accumulation_steps", steps, want)
        # A model with learned positions has no position beyond its max_length.
        want = f"at most {longest}, the longest row that the model reads (its max_length)"
        want += "" if data.length else "; 0 stands for whole histories"
        require(longest is None or 1 <= data.length <= longest, "data.length", data.length, want)
        want = "'prefixes' for a model that is not causal, or it would read its targets"
        require(self.model.causal or data.plan == "prefixes", "data.plan", data.plan, want)
