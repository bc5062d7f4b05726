"""Reads the grids, zips and ranges of the command line as the overrides of each run."""

import re
from collections.abc import Collection, Sequence
from typing import Any

from linseqrec.config import Experiment
from linseqrec.config_fields import assignment, field_names, parse
from linseqrec.errors import SweepError
from linseqrec.sweeps import algebra
from linseqrec.sweeps.ranges import parse_range

# A comma that is not within brackets.
_COMMA = re.compile(r",(?![^\[]*\])")


def read_axes(
    experiment: Experiment,
    *,
    grids: Sequence[str] = (),
    zips: Sequence[str] = (),
    ranges: Sequence[str] = (),
    draws: int = 0,
    seed: int = 0,
    fixed: Collection[str] = (),
) -> algebra.Axis:
    """The product of the grids, of the zip of all zips, and of the draws from all ranges.

    Args:
      experiment: Whose fields and types they are.
      grids: "FIELD=VALUE,VALUE,..." each; a list among the values stands in brackets.
      zips: The same.
      ranges: "FIELD=SCALE:LOW:HIGH" each.
      draws: How many times the ranges are drawn from.
      seed: Of the draws.
      fixed: Dotted names of fields that are the same in every run, because the user said so.

    Returns:
      Overrides by dotted name, in the order of the experiment's fields; one of them a run.

    Raises:
      ConfigError: If a field or a value is not the experiment's.
      SweepError: If nothing is swept, a fixed field or one field twice is, or the draws and the
        ranges are not given together.
    """
    names = field_names(experiment)

    def read(text: str) -> tuple[str, list[Any]]:
        field, values = assignment(text, names)
        return field, [parse(value, field, experiment) for value in _COMMA.split(values)]

    if ranges and not draws:
        raise SweepError(
            f"--range {ranges[0]} without --random: say how many times to draw, as --random=8"
        )
    if draws and not ranges:
        raise SweepError(
            f"--random={draws} without --range: say what to draw, as "
            "--range learning_rate=log:1e-4:1e-2"
        )
    axes = [algebra.grid(*read(text)) for text in grids]
    if zips:
        axes.append(algebra.zipped(_once([read(text) for text in zips])))
    if ranges:
        drawn = _once([assignment(text, names) for text in ranges])
        within = {field: parse_range(text) for field, text in drawn.items()}
        for field, range_ in within.items():
            wanted = int if range_.scale == "int" else float
            kind = type(parse(str(range_.low), field, experiment))
            if kind is not wanted:
                raise SweepError(
                    f"{field} holds {kind.__name__}s, and {drawn[field]} draws {wanted.__name__}s"
                )
        axes.append(algebra.draws(within, draws, seed))
    if not axes:
        raise SweepError(
            "nothing is swept: give --grid FIELD=VALUE,VALUE, --zip FIELD=VALUE,VALUE, or "
            "--random=N with --range FIELD=log:LOW:HIGH"
        )
    product = algebra.product(axes)
    for field in fixed:
        if field in product[0]:
            raise SweepError(f"{field} is swept, and set by --config.{field} too")
    return [
        {field: overrides[field] for field in names if field in overrides} for overrides in product
    ]


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    for field, _ in pairs:
        if [name for name, _ in pairs].count(field) > 1:
            raise SweepError(f"{field} is swept twice")
    return dict(pairs)
