"""Axes of a sweep and their product. An axis is a list of overrides, one element per run.

grid      the values of one field
zipped    the values of several fields: the first values together, then the second ones
draws     random values of several fields
product   all combinations of the elements of several axes
"""

import itertools
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from linseqrec.errors import SweepError
from linseqrec.sweeps.ranges import SIGNIFICANT_DIGITS, Range

Overrides = dict[str, Any]
Axis = list[Overrides]


def grid(field: str, values: Sequence[Any]) -> Axis:
    """An axis with the values of one field.

    Raises:
      SweepError: A value is given twice.
    """
    for index, value in enumerate(values):
        if value in values[:index]:
            raise SweepError(f"{field} has the value {value!r} twice: give each value once")
    return [{field: value} for value in values]


def zipped(values: Mapping[str, Sequence[Any]]) -> Axis:
    """An axis of several fields: the first values of all fields together, then the second ones.

    Raises:
      SweepError: The fields have different numbers of values, or an element occurs twice.
    """
    if len({len(column) for column in values.values()}) > 1:
        counts = ", ".join(f"{field} {len(column)}" for field, column in values.items())
        raise SweepError(f"zipped fields need equal numbers of values; they have {counts}")
    axis = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
    for index, element in enumerate(axis):
        if element in axis[:index]:
            raise SweepError(f"the zip has {element} twice: give each combination once")
    return axis


def draws(ranges: Mapping[str, Range], count: int, seed: int) -> Axis:
    """An axis with random values of several fields. All elements are different.

    A seed always gives the same draws, and a larger count only appends draws, so a sweep can grow.

    Args:
      ranges: The range of each field.
      count: Number of draws.
      seed: Seed of the draws.

    Raises:
      SweepError: The ranges have fewer than `count` combinations.
    """
    size = math.prod(range_.size for range_ in ranges.values())
    # Each field has its own generator, so its draws do not depend on the other fields.
    generators = {
        field: np.random.default_rng([seed, zlib.crc32(field.encode())]) for field in ranges
    }
    axis: Axis = []
    repeats = 0
    while len(axis) < count:
        # Rounded numbers are few in a narrow range. So many repeats mean that none is left.
        if len(axis) >= size or repeats > 1000 + 20 * len(axis):
            raise SweepError(
                f"{count} draws are more than the {len(axis)} combinations in the ranges of "
                f"{', '.join(ranges)}, with {SIGNIFICANT_DIGITS} digits a number: draw fewer, or "
                "widen a range"
            )
        element = {field: ranges[field].at(generators[field].random()) for field in ranges}
        repeats = repeats + 1 if element in axis else 0
        if not repeats:
            axis.append(element)
    return axis


def product(axes: Sequence[Axis]) -> Axis:
    """All combinations of the axes' elements. The last axis varies fastest.

    Raises:
      SweepError: Two axes have the same field.
    """
    fields = [field for axis in axes for field in axis[0]]
    for field in fields:
        if fields.count(field) > 1:
            raise SweepError(f"{field} is swept twice: name it in one grid, zip or range only")
    return [
        {field: value for element in row for field, value in element.items()}
        for row in itertools.product(*axes)
    ]
