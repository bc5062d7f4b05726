"""Configurations of models as users write them, in a module of their own, and experiments."""

import dataclasses
from typing import Literal

from linseqrec.config import EvaluationConfig, Experiment, TrainingConfig
from linseqrec.data.source import DataConfig
from linseqrec.models.base import Dtype, ModelConfig
from linseqrec.models.own_items import OwnItems
from linseqrec.models.recgrela import RecGRELAConfig
from linseqrec.models.sasrec import SASRecConfig


@dataclasses.dataclass(frozen=True)
class OwnConfig(ModelConfig):
    """Fields of many kinds."""

    sizes: tuple = ()
    order: Literal["past", "future"] = "past"
    depth: int | None = None
    side: Literal["left", "right"] | None = "left"
    gate: bool = True
    rates: tuple[float, ...] = (0.1,)
    extra: object = None


@dataclasses.dataclass(frozen=True)
class OwnRecGRELAConfig(RecGRELAConfig):
    """A model that trains."""


@dataclasses.dataclass(frozen=True)
class OwnItemsConfig(ModelConfig):
    """Another model, whose scores start in favour of the history's items (`models.own_items`)."""

    model: ModelConfig = RecGRELAConfig()
    dtype: Dtype = "auto"

    def build(self, num_items, *, rngs, **request_time):
        model = dataclasses.replace(self.model, dtype=self.dtype)
        return OwnItems(model.build(num_items, rngs=rngs, **request_time))


@dataclasses.dataclass(frozen=True)
class OddConfig(ModelConfig):
    """It refuses a value in words of its own."""

    width: int = 3

    def __post_init__(self):
        if self.width % 2 == 0:
            raise ValueError("even widths are not odd")


EXPERIMENT = Experiment(
    name="x",
    model=SASRecConfig(heads=2),
    data=DataConfig(length=50),
    training=TrainingConfig(num_epochs=2),
    evaluation=EvaluationConfig(filter_seen=("all", "none")),
)
OWN = dataclasses.replace(EXPERIMENT, model=OwnConfig())
