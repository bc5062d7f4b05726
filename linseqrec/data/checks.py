"""Checks that a log must pass before it becomes a data set."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import narwhals as nw
import numpy as np
import polars as pl

from linseqrec.data import filters
from linseqrec.data.readers import Log, times
from linseqrec.data.readers.formats import MISSING, TIME_UNITS
from linseqrec.data.readers.log import WRITTEN
from linseqrec.errors import LogError

FOLDS = {"train": 0, "validation": 1, "test": 2}


_Kind: TypeAlias = times.Range | times.LookAlike


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
      LogError: A value is missing or wrong, the times have several units, or look like something
        else than times; names the first row.
    """
    time, checks = nw.col("timestamp"), {}
    if log.time_unit != "order":
        checks["unread time"] = time.is_null() | ~time.is_finite()
        checks["negative time"] = time < 0
    if "fold" in log.columns:
        fold = nw.col("fold")
        wrong_fold = fold.is_null() | ~fold.is_in(list(FOLDS))
        checks[f"the fold must be one of {', '.join(FOLDS)}."] = wrong_fold
    if rated:
        rating = nw.col("rating")
        checks["unread rating"] = rating.is_null() | ~rating.is_finite()
    kinds: tuple[_Kind, ...] = ()
    if log.time_unit not in ("order", "iso"):
        kinds = times.RANGES if log.unit_named else (*times.RANGES, *times.LOOK_ALIKES)
    predicates = [*checks.values(), *(kind.contains(time) for kind in kinds)]
    if kinds:
        predicates.append(time == 0)
    found = _find(frame, predicates)
    wrong_rows = {
        reason: row for reason, (row, _) in zip(checks, found, strict=False) if row is not None
    }
    if wrong_rows:
        reason = min(wrong_rows, key=wrong_rows.__getitem__)
        raise _wrong_value(log, wrong_rows[reason], reason)
    if log.time_unit in ("order", "iso"):
        return log.time_unit
    first_rows = _first_rows(log, dict(zip(kinds, found[len(checks) : -1], strict=True)))
    unit, (zero, _) = _choose_unit(log, first_rows), found[-1]
    if zero is not None and unit in first_rows and not log.unit_named:
        raise log.error(
            zero,
            "the time is 0, the year 1970, beside times after 1990: it may stand for a missing "
            f"time. Drop the event, or set --time_unit={unit} to keep it.",
        )
    return unit


def detect_unit(log: Log) -> str:
    """The time unit of a log of numbers, of which a time range may drop the wrong ones.

    Raises:
      LogError: The times have several units, or look like something else than times.
    """
    kinds: tuple[_Kind, ...] = (*times.RANGES, *times.LOOK_ALIKES)
    found = _find(log.frame, [kind.contains(nw.col("timestamp")) for kind in kinds])
    first_rows = _first_rows(log, dict(zip(kinds, found, strict=True)))
    plausible = {name: row for name, row in first_rows.items() if name in times.UNIT_NAMES}
    if len(plausible) > 1:
        unit, other = sorted(plausible, key=plausible.__getitem__)[:2]
        raise log.error(
            plausible[other],
            f"this time reads as {times.UNIT_NAMES[other]}, but the first time of the log reads as "
            f"{times.UNIT_NAMES[unit]}, so that --time_range needs the unit. Write all times in "
            f"one unit, or set --time_unit={unit} to read all of them as {times.UNIT_NAMES[unit]}.",
        )
    return _choose_unit(log, plausible or first_rows)


def _find(frame: nw.LazyFrame[Any], predicates: list[nw.Expr]) -> list[tuple[int | None, int]]:
    """The first row at which each predicate is true, or None, and the number of such rows.

    One pass over the frame finds them all.
    """
    if not predicates:
        return []
    rows = [nw.when(predicate).then(nw.col("row")) for predicate in predicates]
    found = filters.collect(
        frame.select(
            *(row.min().alias(f"first {number}") for number, row in enumerate(rows)),
            *(row.count().alias(f"count {number}") for number, row in enumerate(rows)),
        )
    )
    values = found.row(0)
    return [
        (None if first is None else int(first), int(count))
        for first, count in zip(values[: len(rows)], values[len(rows) :], strict=True)
    ]


def _wrong_value(log: Log, row: int, reason: str) -> LogError:
    if reason not in ("unread time", "negative time", "unread rating"):
        return log.error(row, reason)
    role = "rating" if reason == "unread rating" else "timestamp"
    value = log.written(role, row)
    if value is None or str(value) in MISSING:
        return _missing(log, role)
    if role == "rating":
        return log.error(row, f"the rating {_show(value)} must be a finite number.")
    if reason == "negative time":
        return log.error(
            row,
            f"the time {_show(value)} is negative, or before 1970. To drop such events, set "
            "--time_range=0,END.",
        )
    why = times.describe_unread(str(value), log.time_unit)
    return log.error(row, f"the time {_show(value)} {why}")


def _show(value: Any) -> str:
    """A time as text, in which large numbers have all digits."""
    if isinstance(value, str):
        return value if times.is_number(value) else repr(value)
    return f"{value:.17g}" if isinstance(value, float) else str(value)


def _show_time(log: Log, row: int) -> str:
    return _show(log.written("timestamp", row))


def _first_rows(log: Log, found: Mapping[_Kind, tuple[int | None, int]]) -> dict[str, int]:
    """The first row in each range of times that the log has, by the name of the range.

    Args:
      log: The log.
      found: The first row of each kind of number, or None, and the number of such rows.

    Raises:
      LogError: Most times of the log look like numbers that are no times.
    """
    num_times = sum(count for kind, (_, count) in found.items() if isinstance(kind, times.Range))
    for kind, (row, count) in found.items():
        if isinstance(kind, times.Range) or row is None or count < kind.share * num_times:
            continue
        value = _show_time(log, row)
        raise log.error(
            row,
            f"the time {value} {times.describe_implausible(value)} If the times count seconds, set "
            "--time_unit=s.",
        )
    return {
        kind.name: row
        for kind, (row, _) in found.items()
        if isinstance(kind, times.Range) and row is not None
    }


def _choose_unit(log: Log, first_rows: dict[str, int]) -> str:
    """The log's time unit, from the first row in each range of times that it has.

    Numbers below the ranges of all units read as seconds. They may count from another zero.

    Args:
      log: The log.
      first_rows: The first row in each range, by the name of the range.
    """
    if not first_rows:  # no events
        return log.time_unit or "s"
    plausible = {name: row for name, row in first_rows.items() if name in times.UNIT_NAMES}
    readable = {**plausible, **({"clock": first_rows["clock"]} if "clock" in first_rows else {})}
    takes_clocks = log.unit_named or set(first_rows) == {"clock"}
    if takes_clocks and log.time_unit is not None:
        unit = log.time_unit
    elif readable:
        first = min(readable, key=readable.__getitem__)
        unit = "s" if first == "clock" else first
    else:
        raise _implausible(log, min(first_rows.values()))
    # Times between 1970 and 1990 are below the unit's range.
    allowed = {unit, "clock" if unit == "s" else f"below {unit}"}
    order = [kind.name for kind in times.RANGES]
    if takes_clocks and unit not in first_rows:
        allowed |= set(order[: order.index(unit)])
    if log.time_unit not in (None, unit):
        raise _other_unit(log, readable[unit if unit in readable else "clock"], unit)
    wrong = {name: row for name, row in first_rows.items() if name not in allowed}
    if not wrong:
        return unit
    name = min(wrong, key=wrong.__getitem__)
    row = wrong[name]
    if name not in readable:
        raise _implausible(log, row)
    other = "s" if name == "clock" else name
    if log.unit_named:
        raise _other_unit(log, row, other)
    raise log.error(
        row,
        f"the time {_show_time(log, row)} reads as {times.UNIT_NAMES[other]}, but the "
        f"first time of the log reads as {times.UNIT_NAMES[unit]}. Write all times in one unit.",
    )


def _other_unit(log: Log, row: int, unit: str) -> LogError:
    return log.error(
        row,
        f"the time {_show_time(log, row)} reads as {times.UNIT_NAMES[unit]}, but the "
        f"time unit is {log.time_unit} ({times.UNIT_NAMES[str(log.time_unit)]}). Set "
        f"--time_unit={unit} if all times have this unit.",
    )


def _implausible(log: Log, row: int) -> LogError:
    value = _show_time(log, row)
    return log.error(row, f"the time {value} {times.describe_implausible(value)}")


def is_missing(role: str) -> nw.Expr:
    """Whether each event has no value of the role: user, item, timestamp or rating."""
    column = nw.col(WRITTEN.get(role, role)).cast(nw.String())
    return column.is_null() | column.is_in(MISSING)


def _missing(log: Log, role: str) -> LogError:
    """An error at the first event without a value of the role, with the number of such events."""
    name = {"timestamp": "time", "rating": "rating"}.get(role, f"{role} id")
    missing, names = is_missing(role), name
    if role in ("user", "item"):
        missing, names = is_missing("user") | is_missing("item"), "user or no item id"
    (row, _), (_, count), (_, total) = _find(
        log.frame, [is_missing(role), missing, nw.col("row") >= 0]
    )
    return log.error(
        row,
        f"the {name} is missing. {count:,} of {total:,} events have no {names}. To drop them, set "
        "--drop_missing.",
    )


def check_ids(log: Log, role: str, ids: pl.Series) -> pl.Series:
    """The ids, with ".0" cut if all of them are whole numbers that were written as floats.

    Args:
      log: The log.
      role: "user" or "item".
      ids: The distinct ids of that role.

    Raises:
      LogError: An id is missing, is an object or array of JSON, has a zero character, or is not a
        whole number in a column of floats; or only some ids are written as floats. Names the first
        row.
    """
    column = nw.col(role)
    if (ids.is_null() | ids.is_in(MISSING)).any():
        raise _missing(log, role)
    if ids.str.contains(r"^[\[{]").any():
        log.check_nested(role)
    if ids.str.contains("\0", literal=True).any():
        ((row, _),) = _find(log.frame, [column.str.contains("\0", literal=True)])
        raise log.error(
            row,
            f"the {role} id has a zero character, or in JSON a lone surrogate, \\ud800 to \\udfff. "
            "NumPy would cut the id there: remove the character.",
        )
    if role in log.float_ids:
        is_whole = r"^-?[0-9]+$"
        if not ids.str.contains(is_whole).all():
            ((row, _),) = _find(log.frame, [~column.str.contains(is_whole)])
            value = filters.collect(log.frame.filter(nw.col("row") == row).select(role))
            raise log.error(
                row,
                f"the {role} id {value.item()} is not a whole number that its column of floats "
                "holds exactly. Ids must be integers or text: cast the column.",
            )
        return ids
    is_float = ids.str.contains(r"^-?[0-9]+\.0$")
    if not is_float.any() or not ids.str.contains(r"^-?[0-9]+(\.0)?$").all():
        return ids
    if not is_float.all():
        ((row, _),) = _find(log.frame, [column.str.contains(r"^-?[0-9]+\.0$")])
        raise log.error(
            row,
            f"the {role} id ends with .0, but other {role} ids, such as "
            f"{ids.filter(~is_float)[0]}, do not. Write all of them as integers.",
        )
    return ids.str.strip_suffix(".0")


def check_span(log: Log, frame: nw.LazyFrame[Any], unit: str) -> None:
    """Raises `LogError` at the last event of a log that spans more than int32 seconds, 68 years."""
    time = nw.col("timestamp")
    span = filters.collect(frame.select(first=time.min(), last=time.max())).row(0)
    if span[0] is None:
        return
    first, last = (float(value) / TIME_UNITS[unit] for value in span)
    if np.floor(last) - np.floor(first) > np.iinfo(np.int32).max:
        ((row, _),) = _find(frame, [time == span[1]])
        raise log.error(
            row,
            f"the times span {last - first:.0f} s, from {first:.0f} to {last:.0f}; at most "
            "2147483647 s (int32, 68 years) fit. To drop the other events, set "
            "--time_range=FIRST,END.",
        )
