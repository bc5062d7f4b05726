"""The algebra of sweeps: axes of overrides, and their product.

grid      one field, its values one after another
zipped    several fields, their values element by element
draws     several fields, their values drawn together from ranges
product   every element of one axis with every element of the others, the last varying fastest
"""

import itertools
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from linseqrec.errors import SweepError
from linseqrec.sweeps.ranges import Range

Overrides = dict[str, Any]
Axis = list[Overrides]


def grid(field: str, values: Sequence[Any]) -> Axis:
    """One field's values.

    Raises:
      SweepError: If a value is given twice.
    """
    for index, value in enumerate(values):
        if value in values[:index]:
            raise SweepError(f"{field} is to be {value!r} twice: a run is made once")
    return [{field: value} for value in values]


def zipped(values: Mapping[str, Sequence[Any]]) -> Axis:
    """Several fields' values, the first of each together, then the second of each.

    Raises:
      SweepError: If their numbers differ, or an element occurs twice.
    """
    if len({len(column) for column in values.values()}) > 1:
        counts = ", ".join(f"{field} {len(column)}" for field, column in values.items())
        raise SweepError(f"zipped fields need as many values as each other; they have {counts}")
    axis = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
    for index, element in enumerate(axis):
        if element in axis[:index]:
            raise SweepError(f"{element} is zipped twice: a run is made once")
    return axis


def draws(ranges: Mapping[str, Range], count: int, seed: int) -> Axis:
    """Distinct random values of several fields.

    The same seed gives the same draws, and more of them begin with the same: a sweep can grow.

    Args:
      ranges: By field.
      count: How many.
      seed: Of the draws.

    Raises:
      SweepError: If the ranges do not hold so many.
    """
    if count > math.prod(range_.size for range_ in ranges.values()):
        raise SweepError(f"{count} draws are more than the ranges of {', '.join(ranges)} hold")
    # A generator a field, so that neither the fields' order nor another field changes its draws.
    generators = {
        field: np.random.default_rng([seed, zlib.crc32(field.encode())]) for field in ranges
    }
    axis: Axis = []
    while len(axis) < count:
        drawn = {field: ranges[field].at(generators[field].random()) for field in ranges}
        if drawn not in axis:
            axis.append(drawn)
    return axis


def product(axes: Sequence[Axis]) -> Axis:
    """Every element of one axis with every element of the others, the last varying fastest.

    Raises:
      SweepError: If a field stands in two axes.
    """
    fields = [field for axis in axes for field in axis[0]]
    for field in fields:
        if fields.count(field) > 1:
            raise SweepError(f"{field} is swept twice")
    return [
        {field: value for element in row for field, value in element.items()}
        for row in itertools.product(*axes)
    ]
