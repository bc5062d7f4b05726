"""From a raw log to a dataset folder: check, filter, index, sort, describe, write."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import narwhals as nw
import numpy as np
import polars as pl

from linseqrec.data import checks, filters
from linseqrec.data.dataset import Dataset, check_free, write_dataset
from linseqrec.data.readers import Log, read_file, read_frame
from linseqrec.data.readers.formats import TIME_UNITS


def prepare(
    log: Any,
    folder: str | Path,
    *,
    format: str | None = None,
    columns: Mapping[str, str | int] | None = None,
    time_unit: str | None = None,
    time_range: tuple[float, float] | None = None,
    min_rating: float | None = None,
    duplicates: str = "keep",
    user_core: int = 1,
    item_core: int = 1,
    spark: Any = None,
) -> Dataset:
    """Prepares a log.

    The steps, in this order: `time_range`, `min_rating`, `duplicates`, the k-core; then users and
    items are numbered (shorter ids first, then by text, so that numbers stand by value), and each
    user's events sorted by time, events of equal time in the order of the log. Nothing is dropped
    but by these arguments, and the card counts users, items and events around each.

    Args:
      log: A log file, plain or gzip, in a dialect of `readers.FORMATS`, or a folder of Parquet
        files; or a pandas, Polars, PyArrow, DuckDB or Spark frame, or any other that narwhals knows
        (see `readers.read_frame`).
      folder: The dataset folder to write; must not exist yet.
      format: The file's dialect; told from the file where None.
      columns: Role (user, item, timestamp, rating, fold) to column name, or to position from 0
        for a file without header. A `fold` column holds train, validation or test.
      time_unit: "s", "ms", "us", "iso" (text) or "order" (no time: the order of the log); told
        from the dialect or the values where None. Times become whole seconds after the sort.
      time_range: Keeps events with first <= time < second, in seconds.
      min_rating: Keeps events rated at least so.
      duplicates: Events equal in user, item and time: "keep" them, keep the "first" or "last" in
        the order of the log, or "error" to refuse them.
      user_core: Least events of a user, iterated with `item_core` to the fixed point; 1 keeps all.
      item_core: Least events of an item.
      spark: A Spark session (`readers.spark.start_session`) that reads the file, where Polars
        would; a Spark frame brings its own. Everything but the numbered events stays with Spark's
        workers, and the data set is the same to the last byte.

    Returns:
      The data set as opened from `folder`.

    Raises:
      LogError: The log is refused; the message names file, line and reason. Nothing is written.
      DatasetError: The folder is taken.
      ValueError: An argument makes no sense.
    """
    choices = _Choices(time_range, min_rating, duplicates, user_core, item_core)
    _check_arguments(choices)
    check_free(folder)
    if isinstance(log, str | Path):
        read = read_file(log, format=format, columns=columns, time_unit=time_unit, session=spark)
    elif format is not None:
        raise ValueError("format names the dialect of a file; a frame has none.")
    elif spark is not None:
        raise ValueError("spark reads files; a frame is read by what it is of.")
    else:
        read = read_frame(log, columns=columns, time_unit=time_unit)
    try:
        dataset, user_ids, item_ids = _prepare(read, choices)
    except nw.exceptions.NarwhalsError as error:
        raise read.unreadable(error) from error
    return write_dataset(folder, dataset, user_ids, item_ids)


def _check_arguments(choices: "_Choices") -> None:
    if choices.duplicates not in filters.DUPLICATES:
        known = ", ".join(filters.DUPLICATES)
        raise ValueError(f"duplicates={choices.duplicates!r}: choose among {known}.")
    if choices.user_core < 1 or choices.item_core < 1:
        raise ValueError("user_core and item_core must be at least 1, which drops nothing.")
    if choices.time_range is not None and not choices.time_range[0] < choices.time_range[1]:
        raise ValueError(f"time_range={choices.time_range}: the first must be less.")


@dataclasses.dataclass(frozen=True)
class _Choices:
    """What the caller wants dropped."""

    time_range: tuple[float, float] | None
    min_rating: float | None
    duplicates: str
    user_core: int
    item_core: int


def _prepare(log: Log, choices: _Choices) -> tuple[Dataset, pl.Series, pl.Series]:
    """Everything between reading and writing: the data set, and its users' and items' ids."""
    _check_choices(log, choices)
    inside = _inside(log, choices.time_range)
    rated = choices.min_rating is not None
    unit = checks.check_values(
        log, log.frame if inside is None else log.frame.filter(inside), rated=rated
    )
    frame, ids = _encode(log, rated=rated)
    read = filters.count(frame)
    if read["events"] == 0:
        raise log.error(None, "has no events.")
    frame, history = _apply(log, frame, read, _steps(log, choices, inside))
    if unit != "order":
        checks.check_span(log, frame, unit)
    dataset, user_ids, item_ids = _index(log, frame, unit, ids)
    dataset.card.update(
        reader={
            "format": log.format,
            "columns": log.columns,
            "ignored_columns": log.ignored,
            "time_unit": unit,
            "times": _TIMES[unit],
        },
        read=read,
        filters=history,
    )
    if log.sha256 is not None:
        dataset.card["sha256"]["source"] = log.sha256
    return dataset, user_ids, item_ids


_TIMES = {
    "s": "whole seconds, fractions cut after the sort",
    "ms": "milliseconds, cut to whole seconds after the sort",
    "us": "microseconds, cut to whole seconds after the sort",
    "iso": "dates and times (UTC), cut to whole seconds after the sort",
    "order": "order only: a timestamp is the event's position in its user's history",
}


def _check_choices(log: Log, choices: _Choices) -> None:
    if choices.min_rating is not None and "rating" not in log.columns:
        raise log.error(None, "min_rating needs a rating column (columns rating=…).")
    if log.time_unit == "order" and (choices.time_range or choices.duplicates != "keep"):
        raise log.error(
            None, "the log has no time: time_range and duplicates have no meaning for it."
        )
    if log.time_unit is None and choices.time_range:
        raise log.error(None, "time_range needs the unit of the log's times (time_unit=…).")


def _inside(log: Log, time_range: tuple[float, float] | None) -> nw.Expr | None:
    """True inside the range, and at what is no number, which is for the checks to refuse."""
    if time_range is None:
        return None
    time, ticks = nw.col("timestamp"), TIME_UNITS[log.time_unit or "s"]
    inside = (time >= time_range[0] * ticks) & (time < time_range[1] * ticks)
    return inside | time.is_null() | ~time.is_finite()


def _encode(log: Log, *, rated: bool) -> tuple[nw.LazyFrame[Any], dict[str, pl.Series]]:
    """The log with ids as codes and folds as numbers, and the ids by code."""
    tables, ids = {}, {}
    for role in ("user", "item"):
        tables[role] = filters.id_table(log.frame, role)
        ids[role] = filters.collect(tables[role]).sort("code")["id"]
        checks.check_ids(log, role, ids[role])
    others = [nw.col("row")]
    if log.time_unit != "order":
        others.append(nw.col("timestamp"))
    if rated:
        others.append(nw.col("rating"))
    if "fold" in log.columns:
        fold = nw.col("fold")
        code = (
            nw.when(fold == "validation")
            .then(1)
            .otherwise(nw.when(fold == "test").then(2).otherwise(0))
        )
        others.append(code.cast(nw.Int8()).alias("fold"))
    return filters.encode(log.frame.select("user", "item", *others), tables), ids


def _steps(
    log: Log, choices: _Choices, inside: nw.Expr | None
) -> list[tuple[str, Callable[[nw.LazyFrame[Any]], nw.LazyFrame[Any]]]]:
    """Name and function of each filter, in order."""
    steps: list[tuple[str, Callable[[nw.LazyFrame[Any]], nw.LazyFrame[Any]]]] = []
    if choices.time_range is not None and inside is not None:
        low, high = choices.time_range
        steps.append((f"{low:.15g} <= time < {high:.15g}", lambda frame: frame.filter(inside)))
    if choices.min_rating is not None:
        rated = nw.col("rating") >= choices.min_rating
        steps.append((f"rating >= {choices.min_rating:g}", lambda frame: frame.filter(rated)))
    if choices.duplicates != "keep":
        name = f"{choices.duplicates} of events equal in user, item and time"
        steps.append((name, lambda frame: _without_duplicates(log, frame, choices.duplicates)))
    if choices.user_core > 1 or choices.item_core > 1:
        name = f"core: users >= {choices.user_core} events, items >= {choices.item_core}"
        steps.append(
            (name, lambda frame: filters.core(frame, choices.user_core, choices.item_core))
        )
    return steps


def _without_duplicates(log: Log, frame: nw.LazyFrame[Any], policy: str) -> nw.LazyFrame[Any]:
    if policy != "error":
        return frame.filter(~filters.repeated(policy))
    row = filters.collect(
        frame.filter(filters.repeated("first")).select(nw.col("row").min())
    ).item()
    if row is not None:
        raise log.error(
            row, "an earlier event has the same user, item and time (duplicates=error)."
        )
    return frame


def _apply(
    log: Log,
    frame: nw.LazyFrame[Any],
    counts: dict[str, int],
    steps: list[tuple[str, Callable[[nw.LazyFrame[Any]], nw.LazyFrame[Any]]]],
) -> tuple[nw.LazyFrame[Any], list[dict[str, Any]]]:
    """Applies the filters, counting users, items and events before and after each."""
    history = []
    for name, step in steps:
        frame = filters.materialise(step(frame))
        before, counts = counts, filters.count(frame)
        history.append({"filter": name, "before": before, "after": counts})
        if counts["events"] == 0:
            raise log.error(None, f"no events are left of {before['events']} after [{name}].")
    return frame, history


def _index(
    log: Log, frame: nw.LazyFrame[Any], unit: str, ids: dict[str, pl.Series]
) -> tuple[Dataset, pl.Series, pl.Series]:
    """Sorts, numbers the users and items that are left, and measures."""
    ordered = unit == "order"
    keys = ["user", "row"] if ordered else ["user", "timestamp", "row"]
    folds = ["fold"] if "fold" in log.columns else []
    events = filters.collect(
        frame.sort(*keys).select("user", "item", *([] if ordered else ["timestamp"]), *folds)
    )
    users, items = events["user"].to_numpy(), events["item"].to_numpy()
    begins = np.flatnonzero(np.diff(users, prepend=-1))
    offsets = np.append(begins, len(users)).astype(np.int64)
    present = np.zeros(len(ids["item"]), dtype=bool)
    present[items] = True
    numbers = np.cumsum(present, dtype=np.int32)  # from 1, in the order of the codes
    if ordered:
        times = np.arange(len(users)) - np.repeat(begins, np.diff(offsets))
    else:
        times = np.floor(events["timestamp"].to_numpy() / TIME_UNITS[unit]).astype(np.int64)
    dataset = Dataset.from_arrays(
        numbers[items],
        times,
        offsets,
        int(numbers[-1]),
        source=Path(log.where).name,
        folds=events["fold"].to_numpy() if folds else None,
        order_only=ordered,
    )
    return dataset, ids["user"].gather(users[begins]), ids["item"].filter(pl.Series(present))
