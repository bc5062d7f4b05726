"""`prepare` turns a raw log into a dataset folder: check, encode, filter, sort, number, write."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import narwhals as nw
import numpy as np
import polars as pl

from linseqrec.data import checks, filters
from linseqrec.data.dataset import Dataset
from linseqrec.data.readers import Log, read_file, read_frame
from linseqrec.data.readers.formats import TIME_UNITS
from linseqrec.data.writing import check_free, write_dataset

TIED_ORDERS = ("log", "random")

_Filter: TypeAlias = Callable[[nw.LazyFrame[Any]], nw.LazyFrame[Any]]


def prepare(
    log: Any,
    folder: str | Path,
    *,
    format: str | None = None,
    columns: Mapping[str, str | int] | None = None,
    time_unit: str | None = None,
    separator: str | None = None,
    drop_missing: bool = False,
    time_range: tuple[float, float] | None = None,
    min_rating: float | None = None,
    behaviours: Sequence[str] = (),
    duplicates: str = "keep",
    user_core: int = 1,
    item_core: int = 1,
    tied_order: str = "log",
    spark: Any = None,
) -> Dataset:
    """Writes a dataset folder from a log, and returns the data set.

    `prepare` applies the filters in this order: `drop_missing`, `time_range`, `min_rating`,
    `behaviours`, `duplicates`, the cores. It then numbers users and items: shorter ids first, then
    by text, so that ids that are numbers sort by value. It sorts each user's events by time, and
    events of equal time by `tied_order`. Only the filters drop events. The card counts users, items
    and events before and after each filter.

    Args:
      log: A log file, plain or gzip, in one of `readers.FORMATS`, or a folder of Parquet files. Or
        a frame of pandas, Polars, PyArrow, DuckDB, Spark or another library that narwhals supports
        (see `readers.read_frame`).
      folder: The dataset folder to write. It must not exist, or must be empty.
      format: The file's format, a key of `readers.FORMATS`. None: detected from the file.
      columns: The column of each role: user, item, timestamp, rating, behaviour, fold. A column is
        a name, or a position from 0 in a file without header. A `behaviour` column says what the
        user did, such as pv or buy. A `fold` column holds train, validation or test.
      time_unit: "s", "ms", "us", "ns", "iso" (text), or "order" if the log has no times and its
        lines are in time order. None: the unit of the format, or detected from the values. Numbers
        that look like something else than times are then refused. The sort compares times to the
        microsecond. Then they become whole seconds.
      separator: The text between two fields of a CSV file: one ASCII character, possibly repeated.
        None: a comma, tab, semicolon or pipe, as the first line has it.
      drop_missing: Drop events without a user id, an item id or a time; with `min_rating`, also
        events without a rating.
      time_range: Keep events with time_range[0] <= time < time_range[1], in seconds.
      min_rating: Keep events with at least this rating.
      behaviours: Keep events with one of these behaviours; none keeps all.
      duplicates: What to do with events equal in user, item and time: "keep" all of them, keep
        only the "first" or "last" in the order of the log, or "error" to refuse the log.
      user_core: Smallest number of events of a user; 1 drops no user. `prepare` applies it with
        `item_core` until both hold.
      item_core: Smallest number of events of an item; 1 drops no item.
      tied_order: The order of a user's events of equal time: "log", as in the log, or "random",
        drawn once, the same in each preparation. A log that sorts the products of a basket by
        their ids tells a model something of the next one that nobody knew at that time. The card
        says how many tied events follow an event of a smaller item number.
      spark: A Spark session (`readers.spark.start_session`) that reads the file in place of
        Polars. A Spark frame needs none. Only the numbered events leave Spark's workers. The data
        set is the same to the last byte.

    Returns:
      The data set, opened from `folder`.

    Raises:
      LogError: The log is wrong or empty; the message names file, line and reason. `prepare` then
        writes nothing.
      DatasetError: The folder is not empty.
      ValueError: An argument is out of range, or does not apply to this log.
    """
    choices = _Choices(
        drop_missing,
        time_range,
        min_rating,
        tuple(behaviours),
        duplicates,
        user_core,
        item_core,
        tied_order,
    )
    _check_arguments(choices)
    check_free(folder)
    if isinstance(log, str | Path):
        events = read_file(
            log,
            format=format,
            columns=columns,
            time_unit=time_unit,
            separator=separator,
            session=spark,
        )
    elif format is not None or separator is not None:
        name, value = ("format", format) if format is not None else ("separator", separator)
        raise ValueError(f"{name}={value!r} is for files, but the log is a frame: leave it out.")
    elif spark is not None:
        raise ValueError(
            "spark is for files, but the log is a frame, which its own engine reads: leave it out."
        )
    else:
        events = read_frame(log, columns=columns, time_unit=time_unit)
    try:
        dataset, user_ids, item_ids = _make_dataset(events, choices)
    except (nw.exceptions.NarwhalsError, OSError) as error:
        raise events.unreadable(error) from error
    return write_dataset(folder, dataset, user_ids, item_ids)


def _check_arguments(choices: "_Choices") -> None:
    if choices.duplicates not in filters.DUPLICATES:
        known = ", ".join(filters.DUPLICATES)
        raise ValueError(f"duplicates={choices.duplicates!r} must be one of {known}.")
    if choices.tied_order not in TIED_ORDERS:
        known = ", ".join(TIED_ORDERS)
        raise ValueError(f"tied_order={choices.tied_order!r} must be one of {known}.")
    for name in ("user_core", "item_core"):
        if getattr(choices, name) < 1:
            raise ValueError(
                f"{name}={getattr(choices, name)} must be at least 1; 1 drops nothing."
            )
    if choices.time_range is not None and not choices.time_range[0] < choices.time_range[1]:
        raise ValueError(
            f"time_range={choices.time_range}: the first time must be smaller than the second."
        )


@dataclasses.dataclass(frozen=True)
class _Choices:
    """The arguments of `prepare` that choose events and their order."""

    drop_missing: bool
    time_range: tuple[float, float] | None
    min_rating: float | None
    behaviours: tuple[str, ...]
    duplicates: str
    user_core: int
    item_core: int
    tied_order: str


def _make_dataset(log: Log, choices: _Choices) -> tuple[Dataset, pl.Series, pl.Series]:
    """The data set in memory, with the log's own ids of its users and of its items."""
    _check_choices(log, choices)
    read = None
    if choices.drop_missing:
        read = _count_present(log)
        missing = checks.is_missing("user") | checks.is_missing("item")
        log = dataclasses.replace(log, frame=log.frame.filter(~missing))
    if choices.time_range is not None and log.time_unit is None:
        log = dataclasses.replace(log, time_unit=checks.detect_unit(log))
    in_range = _in_time_range(log, choices.time_range)
    rated = choices.min_rating is not None
    checked = log.frame if in_range is None else log.frame.filter(in_range)
    for role in _roles_to_drop(log, choices):
        checked = checked.filter(~checks.is_missing(role))
    unit = checks.check_values(log, checked, rated=rated)
    if choices.behaviours:
        _check_behaviours(log, choices.behaviours)
    frame, ids = _encode(log, rated=rated, behaviours=bool(choices.behaviours))
    counts = filters.count(frame)
    read = read or counts
    if counts["events"] == 0:
        raise log.error(
            None,
            f"none of its {read['events']} events has a user id and an item id."
            if read["events"]
            else "has no events.",
        )
    frame, filter_counts = _apply_filters(log, frame, counts, _filter_steps(log, choices, in_range))
    if choices.drop_missing:
        name = "events with a user id and an item id"
        filter_counts.insert(0, {"filter": name, "before": read, "after": counts})
    if unit != "order":
        checks.check_span(log, frame, unit)
    dataset, user_ids, item_ids = _sort_and_number(log, frame, unit, ids, choices.tied_order)
    dataset.card.update(
        reader={
            "format": log.format,
            "columns": log.columns,
            "ignored_columns": log.ignored,
            "time_unit": unit,
            "times": _TIMES[unit],
            "tied_order": choices.tied_order,
        },
        read=read,
        filters=filter_counts,
    )
    if log.sha256 is not None:
        dataset.card["sha256"]["source"] = log.sha256
    return dataset, user_ids, item_ids


_TIMES = {
    "s": "whole seconds, fractions cut after the sort",
    "ms": "milliseconds, cut to whole seconds after the sort",
    "us": "microseconds, cut to whole seconds after the sort",
    "ns": "nanoseconds, cut to whole seconds after the sort",
    "iso": "dates and times (UTC), cut to whole seconds after the sort",
    "order": "order only: a timestamp is the event's position in its user's history",
}


def _count_present(log: Log) -> dict[str, int]:
    """The numbers of `users`, `items` and `events` in a log, some of whose ids are missing."""
    user, item = (
        nw.when(~checks.is_missing(role)).then(nw.col(role)).alias(role)
        for role in ("user", "item")
    )
    counts = filters.count(log.frame.select(user, item))
    has_missing = filters.collect(
        log.frame.select(
            users=checks.is_missing("user").any(), items=checks.is_missing("item").any()
        )
    )
    # `n_unique` counts null as one more id.
    return {
        name: number - int(name != "events" and bool(has_missing[name][0]))
        for name, number in counts.items()
    }


def _check_choices(log: Log, choices: _Choices) -> None:
    if choices.min_rating is not None and "rating" not in log.columns:
        raise log.error(
            None,
            f"--min_rating={choices.min_rating:g} needs a rating column. Name it: "
            "--columns=rating=COLUMN.",
        )
    if choices.behaviours and "behaviour" not in log.columns:
        raise log.error(
            None,
            f"--behaviours={','.join(choices.behaviours)} needs a column of behaviours. Name it: "
            "--columns=behaviour=COLUMN.",
        )
    if log.time_unit == "order" and (choices.time_range or choices.duplicates != "keep"):
        raise log.error(
            None, "the log has no times, which --time_range and --duplicates need. Leave both out."
        )
    if log.time_unit == "order" and choices.tied_order != "log":
        raise log.error(
            None,
            "the log has no times, so no events are tied: leave "
            f"--tied_order={choices.tied_order} out.",
        )


def _check_behaviours(log: Log, behaviours: Sequence[str]) -> None:
    """Raises `LogError` if no event has one of the behaviours; lists those that there are."""
    column = nw.col("behaviour")
    counts = filters.collect(
        log.frame.filter(~column.is_null()).group_by("behaviour").agg(nw.len().alias("events"))
    ).sort("events", "behaviour", descending=[True, False])
    known = counts["behaviour"].to_list()
    unknown = [name for name in behaviours if name not in known]
    if unknown:
        listed = ", ".join(known[:10]) + (", ..." if known[10:] else "")
        raise log.error(
            None, f"no event has the behaviour {', '.join(unknown)}. Behaviours: {listed}."
        )


def _in_time_range(log: Log, time_range: tuple[float, float] | None) -> nw.Expr | None:
    """True in the time range, and at times that are not numbers: `check_values` refuses these."""
    if time_range is None:
        return None
    time, ticks = nw.col("timestamp"), TIME_UNITS[log.time_unit or "s"]
    in_range = (time >= time_range[0] * ticks) & (time < time_range[1] * ticks)
    return in_range | time.is_null() | ~time.is_finite()


def _encode(
    log: Log, *, rated: bool, behaviours: bool
) -> tuple[nw.LazyFrame[Any], dict[str, pl.Series]]:
    """The log with codes in place of ids and fold names, and the ids of each role by code."""
    tables, ids = {}, {}
    for role in ("user", "item"):
        tables[role] = filters.id_table(log.frame, role)
        ids[role] = filters.collect(tables[role]).sort("code")["id"]
        ids[role] = checks.check_ids(log, role, ids[role])
    columns = [nw.col("user"), nw.col("item"), nw.col("row")]
    if log.time_unit != "order":
        columns.append(nw.col("timestamp"))
    if rated:
        columns.append(nw.col("rating"))
    if behaviours:
        columns.append(nw.col("behaviour"))
    if "fold" in log.columns:
        fold = nw.col("fold")
        code = (
            nw.when(fold == "validation")
            .then(1)
            .otherwise(nw.when(fold == "test").then(2).otherwise(0))
        )
        columns.append(code.cast(nw.Int8()).alias("fold"))
    return filters.encode(log.frame.select(*columns), tables), ids


def _roles_to_drop(log: Log, choices: _Choices) -> list[str]:
    """The roles, other than user and item, without whose value `drop_missing` drops an event."""
    present = {"timestamp": log.time_unit != "order", "rating": choices.min_rating is not None}
    return [role for role in present if present[role] and choices.drop_missing]


def _filter_steps(
    log: Log, choices: _Choices, in_range: nw.Expr | None
) -> list[tuple[str, _Filter]]:
    """The name and the function of each filter, in the order of their application."""
    steps: list[tuple[str, _Filter]] = []
    for role in _roles_to_drop(log, choices):
        name = f"events with a {'time' if role == 'timestamp' else role}"
        steps.append((name, functools.partial(_drop_missing, role)))
    if choices.time_range is not None and in_range is not None:
        low, high = choices.time_range
        steps.append((f"{low:.15g} <= time < {high:.15g}", lambda frame: frame.filter(in_range)))
    if choices.min_rating is not None:
        rated_enough = nw.col("rating") >= choices.min_rating
        steps.append(
            (f"rating >= {choices.min_rating:g}", lambda frame: frame.filter(rated_enough))
        )
    if choices.behaviours:
        kept = nw.col("behaviour").is_in(list(choices.behaviours))
        name = f"behaviour {' or '.join(choices.behaviours)}"
        steps.append((name, lambda frame: frame.filter(kept)))
    if choices.duplicates != "keep":
        name = f"{choices.duplicates} of events equal in user, item and time"
        steps.append((name, lambda frame: _without_duplicates(log, frame, choices.duplicates)))
    if choices.user_core > 1 or choices.item_core > 1:
        name = f"core: users >= {choices.user_core} events, items >= {choices.item_core}"
        steps.append(
            (name, lambda frame: filters.core(frame, choices.user_core, choices.item_core))
        )
    return steps


def _drop_missing(role: str, frame: nw.LazyFrame[Any]) -> nw.LazyFrame[Any]:
    # Only a missing value is not finite here: `check_values` has refused the others.
    return frame.filter(nw.col(role).is_finite())


def _without_duplicates(log: Log, frame: nw.LazyFrame[Any], policy: str) -> nw.LazyFrame[Any]:
    """The frame without duplicates; with the policy "error", raises at the first duplicate."""
    if policy != "error":
        return frame.filter(~filters.repeated(policy))
    row = filters.collect(
        frame.filter(filters.repeated("first")).select(nw.col("row").min())
    ).item()
    if row is not None:
        raise log.error(
            row,
            "an earlier event has the same user, item and time, and --duplicates is error. To "
            "keep one of them, set --duplicates=first or last.",
        )
    return frame


def _apply_filters(
    log: Log,
    frame: nw.LazyFrame[Any],
    counts: dict[str, int],
    steps: list[tuple[str, _Filter]],
) -> tuple[nw.LazyFrame[Any], list[dict[str, Any]]]:
    """The filtered frame, and the users, items and events before and after each filter."""
    filter_counts = []
    for name, apply_filter in steps:
        frame = filters.materialise(apply_filter(frame))
        before, counts = counts, filters.count(frame)
        filter_counts.append({"filter": name, "before": before, "after": counts})
        if counts["events"] == 0:
            raise log.error(
                None,
                f"no events are left of {before['events']} after the filter [{name}]. Choose a "
                "weaker filter.",
            )
    return frame, filter_counts


def _sort_and_number(
    log: Log, frame: nw.LazyFrame[Any], unit: str, ids: dict[str, pl.Series], tied_order: str
) -> tuple[Dataset, pl.Series, pl.Series]:
    """The data set of the sorted events, with consecutive user and item numbers, and their ids."""
    order_only = unit == "order"
    keys = ["user", "row"] if order_only else ["user", "timestamp", "row"]
    folds = ["fold"] if "fold" in log.columns else []
    events = filters.collect(
        frame.sort(*keys).select("user", "item", *([] if order_only else ["timestamp"]), *folds)
    )
    if tied_order == "random":
        draws = np.random.default_rng(0).random(len(events))
        # The log's own split stays in order: training events stand before those that they predict.
        order = (draws, *(events[name] for name in folds), events["timestamp"], events["user"])
        events = events[np.lexsort(order)]
    users, items = events["user"].to_numpy(), events["item"].to_numpy()
    user_starts = np.flatnonzero(np.diff(users, prepend=-1))
    offsets = np.append(user_starts, len(users)).astype(np.int64)
    present = np.zeros(len(ids["item"]), dtype=bool)
    present[items] = True
    numbers = np.cumsum(present, dtype=np.int32)  # from 1, in the order of the codes
    if order_only:
        times = np.arange(len(users)) - np.repeat(user_starts, np.diff(offsets))
    else:
        # Floor division is exact, unlike the floor of a rounded quotient.
        times = (events["timestamp"].to_numpy() // TIME_UNITS[unit]).astype(np.int64)
    dataset = Dataset.from_arrays(
        numbers[items],
        times,
        offsets,
        int(numbers[-1]),
        source=Path(log.where).name,
        folds=events["fold"].to_numpy() if folds else None,
        order_only=order_only,
    )
    return dataset, ids["user"].gather(users[user_starts]), ids["item"].filter(pl.Series(present))
