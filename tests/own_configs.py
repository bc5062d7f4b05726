"""Configurations of models as users write them, in a module of their own."""

import dataclasses
from typing import Literal

from linseqrec.models.base import ModelConfig
from linseqrec.models.recgrela import RecGRELAConfig


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
class OddConfig(ModelConfig):
    """It refuses a value in words of its own."""

    width: int = 3

    def __post_init__(self):
        if self.width % 2 == 0:
            raise ValueError("even widths are not odd")
