"""Ranges of values for random search."""

import dataclasses
import math
import re
from typing import Literal

from linseqrec.errors import SweepError

# Digits of a drawn value. More digits would make the names of folders longer.
SIGNIFICANT_DIGITS = 4


@dataclasses.dataclass(frozen=True)
class Range:
    """The values between two bounds, including both.

    Attributes:
      scale: "lin" is uniform, "log" is uniform in the logarithm, "int" is uniform over integers.
      low: The smallest value.
      high: The largest value.
    """

    scale: Literal["lin", "log", "int"]
    low: float
    high: float

    def __post_init__(self) -> None:
        lower_limit = 0 if self.scale == "log" else -math.inf
        if not (math.isfinite(self.high) and lower_limit < self.low < self.high):
            rule = "0 < low < high" if self.scale == "log" else "low < high"
            raise SweepError(
                f"range {self.scale}:{self.low:g}:{self.high:g}: the bounds must be finite, with "
                f"{rule}"
            )

    @property
    def size(self) -> float:
        """The number of values; infinite unless the scale is "int"."""
        return self.high - self.low + 1 if self.scale == "int" else math.inf

    def at(self, share: float) -> float | int:
        """The value at a share in [0, 1) of the way from the low to the high bound, rounded."""
        if self.scale == "int":
            return int(self.low + math.floor(share * self.size))
        if self.scale == "log":
            value = self.low * (self.high / self.low) ** share
        else:
            value = self.low + (self.high - self.low) * share
        # Clipped, because rounding could leave the range.
        return min(max(float(f"{value:.{SIGNIFICANT_DIGITS}g}"), self.low), self.high)


def parse_range(text: str) -> Range:
    """The range of a text such as "log:1e-4:1e-2", "lin:0:0.5" or "int:1:4".

    Raises:
      SweepError: The text has another form, or its bounds are not in order.
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
