"""Ranges that random search draws from."""

import dataclasses
import math
import re
from typing import Literal

from linseqrec.errors import SweepError

# Of a value drawn; more would only lengthen the names of folders.
SIGNIFICANT_DIGITS = 4


@dataclasses.dataclass(frozen=True)
class Range:
    """Values between two bounds, both included.

    Attributes:
      scale: "lin" is uniform, "log" uniform in the logarithm, "int" uniform over whole numbers.
      low: The least value.
      high: The greatest.
    """

    scale: Literal["lin", "log", "int"]
    low: float
    high: float

    def __post_init__(self) -> None:
        lowest = 0 if self.scale == "log" else -math.inf
        if not (math.isfinite(self.high) and lowest < self.low < self.high):
            floor = "0 < low < high" if self.scale == "log" else "low < high"
            raise SweepError(f"range {self.scale}:{self.low:g}:{self.high:g}: it must be {floor}")

    @property
    def size(self) -> float:
        """How many values there are."""
        return self.high - self.low + 1 if self.scale == "int" else math.inf

    def at(self, share: float) -> float | int:
        """The value at a share in [0, 1) of the way from the low to the high bound."""
        if self.scale == "int":
            return int(self.low + math.floor(share * self.size))
        if self.scale == "log":
            value = self.low * (self.high / self.low) ** share
        else:
            value = self.low + (self.high - self.low) * share
        # Rounding must not leave the range.
        return min(max(float(f"{value:.{SIGNIFICANT_DIGITS}g}"), self.low), self.high)


def parse_range(text: str) -> Range:
    """A range written "log:1e-4:1e-2", "lin:0:0.5" or "int:1:4".

    Raises:
      SweepError: If it is written otherwise, or its bounds bound nothing.
    """
    match = re.fullmatch(r"(lin|log|int):([^:]+):([^:]+)", text)
    try:
        if not match:
            raise ValueError(text)
        number = int if match[1] == "int" else float
        low, high = number(match[2]), number(match[3])
    except ValueError as error:
        raise SweepError(
            f"range {text!r}: write log:LOW:HIGH, lin:LOW:HIGH, or int:LOW:HIGH in whole numbers"
        ) from error
    return Range(match[1], low, high)  # type: ignore[arg-type]
