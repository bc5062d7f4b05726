"""Checks a log must pass before it becomes a data set, as narwhals expressions."""

from typing import Any

import narwhals as nw
import numpy as np
import polars as pl

from linseqrec.data.readers import Log
from linseqrec.data.readers.formats import TIME_UNITS

FOLDS = {"train": 0, "validation": 1, "test": 2}

# Ids that are somebody's way of writing "missing": taken for ids they would make one giant user.
NULL_IDS = ("", "nan", "NaN", "NAN", "null", "NULL", "Null", "None", "none", "<NA>", "\\N")

# From 1973 to 5138 a time in seconds lies below the first bound, one in milliseconds between them.
_MILLISECONDS, _MICROSECONDS = 1e11, 1e14
_UNIT_NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds"}


def check_values(log: Log, frame: nw.LazyFrame[Any], *, rated: bool) -> str:
    """Checks every value but the ids in one pass over the log.

    Args:
      log: The log, for its time unit and its messages.
      frame: Its events.
      rated: Ratings are used, and so are checked.

    Returns:
      The time unit, a key of `TIME_UNITS`.

    Raises:
      LogError: At the first row that is wrong.
    """
    time, checks = nw.col("timestamp"), {}
    if log.time_unit != "order":
        checks["the time is missing or no number."] = time.is_null()
        checks["the time is NaN or infinite."] = ~time.is_finite()
        checks["the time is negative (time_range=… drops such events, and counts them)."] = time < 0
    if "fold" in log.columns:
        fold = nw.col("fold")
        wrong = fold.is_null() | ~fold.is_in(list(FOLDS))
        checks[f"the fold is none of {', '.join(FOLDS)}."] = wrong
    if rated:
        rating = nw.col("rating")
        checks["the rating is missing or no number."] = rating.is_null() | ~rating.is_finite()
    units = {
        "s": time < _MILLISECONDS,
        "ms": (time >= _MILLISECONDS) & (time < _MICROSECONDS),
        "us": time >= _MICROSECONDS,
    }
    if log.time_unit in ("order", "iso"):
        units = {}
    wanted = {**checks, **units}
    found = zip(wanted, _first_rows(frame, list(wanted.values())), strict=True)
    rows = {reason: row for reason, row in found if row is not None}
    wrong_rows = {reason: row for reason, row in rows.items() if reason in checks}
    if wrong_rows:
        reason = min(wrong_rows, key=wrong_rows.__getitem__)
        raise log.error(wrong_rows[reason], reason)
    if log.time_unit in ("order", "iso"):
        return log.time_unit
    return _check_unit(log, {unit: rows[unit] for unit in units if unit in rows})


def _first_rows(frame: nw.LazyFrame[Any], predicates: list[nw.Expr]) -> list[int | None]:
    """The first row each predicate holds at, in one pass; None where it holds nowhere."""
    if not predicates:
        return []
    found = frame.select(
        *(
            nw.when(predicate).then(nw.col("row")).min().alias(str(number))
            for number, predicate in enumerate(predicates)
        )
    ).collect(backend="polars")
    return [None if value is None else int(value) for value in found.row(0)]


def _check_unit(log: Log, found: dict[str, int]) -> str:
    """The time unit, from the first row of each magnitude that occurs."""
    if len(found) > 1:
        (_, unit), (row, other) = sorted((row, unit) for unit, row in found.items())[:2]
        raise log.error(
            row,
            f"the time reads as {_UNIT_NAMES[other]}, but the log's first as {_UNIT_NAMES[unit]}.",
        )
    unit, row = next(iter(found.items()), ("s", 0))
    if log.time_unit == "s" and unit != "s":
        raise log.error(
            row, f"the time reads as {_UNIT_NAMES[unit]}, not seconds: say time_unit={unit}."
        )
    return log.time_unit or unit


def check_ids(log: Log, role: str, ids: pl.Series) -> None:
    """Refuses missing ids (`LogError`), given the distinct ones."""
    if not (ids.is_null() | ids.is_in(NULL_IDS)).any():
        return
    column = nw.col(role)
    (row,) = _first_rows(log.frame, [column.is_null() | column.is_in(NULL_IDS)])
    raise log.error(row, f"the {role} id is missing.")


def check_span(log: Log, frame: nw.LazyFrame[Any], unit: str) -> None:
    """Refuses a log longer than int32 seconds, 68 years (`LogError` at its last event)."""
    time = nw.col("timestamp")
    found = frame.select(first=time.min(), last=time.max()).collect(backend="polars").row(0)
    if found[0] is None:
        return
    first, last = (float(value) / TIME_UNITS[unit] for value in found)
    if np.floor(last) - np.floor(first) > np.iinfo(np.int32).max:
        (row,) = _first_rows(frame, [time == found[1]])
        raise log.error(
            row,
            f"the times span {last - first:.0f} s, from {first:.0f} to {last:.0f}; at most "
            "2147483647 (int32, 68 years) fit. time_range=… drops events outside.",
        )
