"""Checks that a log must pass before it becomes a data set."""

from typing import Any

import narwhals as nw
import numpy as np
import polars as pl

from linseqrec.data.readers import Log
from linseqrec.data.readers.formats import TIME_UNITS

FOLDS = {"train": 0, "validation": 1, "test": 2}

# Common spellings of "missing". As ids, they would merge all such events into one user or item.
NULL_IDS = ("", "nan", "NaN", "NAN", "null", "NULL", "Null", "None", "none", "<NA>", "\\N")

# The smallest time that reads as milliseconds, and as microseconds. The bounds tell the units
# apart for all times between the years 1973 and 5138.
_MILLISECONDS, _MICROSECONDS = 1e11, 1e14
_UNIT_NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds"}


def check_values(log: Log, frame: nw.LazyFrame[Any], *, rated: bool) -> str:
    """The time unit of a log whose times, folds and ratings are valid.

    One pass over the log checks all values except the ids (`check_ids`).

    Args:
      log: The log: its time unit, its columns and its error messages.
      frame: The events to check.
      rated: Whether to check the ratings.

    Returns:
      A key of `TIME_UNITS`: the unit of the log, or the unit that fits the times if it has none.

    Raises:
      LogError: A value is missing or wrong, or the times have several units; names the first row.
    """
    time, checks = nw.col("timestamp"), {}
    if log.time_unit != "order":
        checks["the time is missing or not a number."] = time.is_null()
        checks["the time is NaN or infinite."] = ~time.is_finite()
        checks["the time is negative. To drop such events, set time_range=0,END."] = time < 0
    if "fold" in log.columns:
        fold = nw.col("fold")
        wrong_fold = fold.is_null() | ~fold.is_in(list(FOLDS))
        checks[f"the fold must be one of {', '.join(FOLDS)}."] = wrong_fold
    if rated:
        rating = nw.col("rating")
        checks["the rating is missing or not a number."] = rating.is_null() | ~rating.is_finite()
    units = {
        "s": time < _MILLISECONDS,
        "ms": (time >= _MILLISECONDS) & (time < _MICROSECONDS),
        "us": time >= _MICROSECONDS,
    }
    if log.time_unit in ("order", "iso"):
        units = {}
    predicates = {**checks, **units}
    first_rows = zip(predicates, _first_rows(frame, list(predicates.values())), strict=True)
    rows = {name: row for name, row in first_rows if row is not None}
    wrong_rows = {reason: row for reason, row in rows.items() if reason in checks}
    if wrong_rows:
        reason = min(wrong_rows, key=wrong_rows.__getitem__)
        raise log.error(wrong_rows[reason], reason)
    if log.time_unit in ("order", "iso"):
        return log.time_unit
    return _check_unit(log, {unit: rows[unit] for unit in units if unit in rows})


def _first_rows(frame: nw.LazyFrame[Any], predicates: list[nw.Expr]) -> list[int | None]:
    """The first row at which each predicate is true, or None, from one pass over the frame."""
    if not predicates:
        return []
    first_rows = frame.select(
        *(
            nw.when(predicate).then(nw.col("row")).min().alias(str(number))
            for number, predicate in enumerate(predicates)
        )
    ).collect(backend="polars")
    return [None if value is None else int(value) for value in first_rows.row(0)]


def _check_unit(log: Log, first_row_of_unit: dict[str, int]) -> str:
    """The log's time unit, from the first row whose time has the size of each unit."""
    if len(first_row_of_unit) > 1:
        rows = sorted((row, unit) for unit, row in first_row_of_unit.items())
        (_, unit), (row, other_unit) = rows[:2]
        raise log.error(
            row,
            f"the time reads as {_UNIT_NAMES[other_unit]}, but the first time of the log reads as "
            f"{_UNIT_NAMES[unit]}. Write all times in one unit.",
        )
    unit, row = next(iter(first_row_of_unit.items()), ("s", 0))
    if log.time_unit == "s" and unit != "s":
        raise log.error(
            row,
            f"the time reads as {_UNIT_NAMES[unit]}, but time_unit is s (seconds). Set "
            f"time_unit={unit}.",
        )
    return log.time_unit or unit


def check_ids(log: Log, role: str, ids: pl.Series) -> None:
    """Raises `LogError` at the first missing id of the log.

    Args:
      log: The log.
      role: "user" or "item".
      ids: The distinct ids of that role.
    """
    if not (ids.is_null() | ids.is_in(NULL_IDS)).any():
        return
    column = nw.col(role)
    (row,) = _first_rows(log.frame, [column.is_null() | column.is_in(NULL_IDS)])
    raise log.error(row, f"the {role} id is missing.")


def check_span(log: Log, frame: nw.LazyFrame[Any], unit: str) -> None:
    """Raises `LogError` at the last event of a log that spans more than int32 seconds, 68 years."""
    time = nw.col("timestamp")
    span = frame.select(first=time.min(), last=time.max()).collect(backend="polars").row(0)
    if span[0] is None:
        return
    first, last = (float(value) / TIME_UNITS[unit] for value in span)
    if np.floor(last) - np.floor(first) > np.iinfo(np.int32).max:
        (row,) = _first_rows(frame, [time == span[1]])
        raise log.error(
            row,
            f"the times span {last - first:.0f} s, from {first:.0f} to {last:.0f}; at most "
            "2147483647 s (int32, 68 years) fit. To drop the other events, set "
            "time_range=FIRST,END.",
        )
