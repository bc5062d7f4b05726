"""Filters and id codes of the preparation, as narwhals expressions for every engine.

A frame holds one event a row. Its columns are `row` (the order of the log), `user`, `item` and
`timestamp`; a log without times has no `timestamp`.
"""

from collections.abc import Mapping
from typing import Any

import narwhals as nw

DUPLICATES = ("keep", "first", "last", "error")


def materialise(frame: nw.LazyFrame[Any]) -> nw.LazyFrame[Any]:
    """A frame whose values are computed, so that several uses compute them once.

    Polars streams the computation, which may be larger than memory. Spark keeps the result on its
    workers. Frames of other engines stay lazy: each use computes them again.
    """
    if frame.implementation.is_polars():
        return frame.collect(engine="streaming").lazy()
    if frame.implementation.is_pyspark():
        return nw.from_native(nw.to_native(frame).localCheckpoint())
    return frame


def count(frame: nw.LazyFrame[Any]) -> dict[str, int]:
    """The numbers of `users`, `items` and `events` in a frame."""
    counts = frame.select(
        users=nw.col("user").n_unique(), items=nw.col("item").n_unique(), events=nw.len()
    )
    return {name: int(value) for name, value in collect(counts).row(0, named=True).items()}


def collect(frame: nw.LazyFrame[Any]) -> Any:
    """The frame as a Polars frame in memory."""
    if frame.implementation.is_polars():
        return frame.collect(engine="streaming").to_native()
    return frame.collect(backend="polars").to_native()


def id_table(frame: nw.LazyFrame[Any], role: str) -> nw.LazyFrame[Any]:
    """The distinct ids with their codes from 0, in the order of their length, then their text.

    The codes do not depend on the order of the log, and ids that are numbers sort by value.

    Args:
      frame: Events with original ids.
      role: "user" or "item".

    Returns:
      Columns `id` (text) and `code` (int32).
    """
    return materialise(
        frame.group_by(role)
        .agg(nw.len().alias("events"))
        .select(id=nw.col(role), length=nw.col(role).str.len_chars())
        .with_row_index("code", order_by=["length", "id"])
        .select(nw.col("id"), nw.col("code").cast(nw.Int32()))
    )


def encode(frame: nw.LazyFrame[Any], tables: Mapping[str, nw.LazyFrame[Any]]) -> nw.LazyFrame[Any]:
    """The events with int32 codes in place of the ids: a smaller frame for the filters.

    Args:
      frame: Events with original ids.
      tables: The `id_table` of each role.
    """
    for role, table in tables.items():
        coded = table.select(nw.col("id").alias(role), nw.col("code").alias(f"{role}_code"))
        frame = frame.join(coded, on=role, how="inner")
    frame = frame.drop(*tables).rename({f"{role}_code": role for role in tables})
    return materialise(frame)


def repeated(keep: str) -> nw.Expr:
    """True at the duplicates to drop: of events equal in user, item and time, all but one.

    Args:
      keep: Which of the equal events stays: "first" or "last" in the order of the log.
    """
    row = nw.col("row")
    row_to_keep = row.min() if keep == "first" else row.max()
    return row != row_to_keep.over("user", "item", "timestamp")


def core(frame: nw.LazyFrame[Any], user_core: int, item_core: int) -> nw.LazyFrame[Any]:
    """The largest set of events in which every user and every item has enough events.

    The function drops users and items with too few events in turn, until both have enough. The
    result does not depend on the order of the drops.

    Args:
      frame: Events.
      user_core: Smallest number of events of a user; 1 drops no user.
      item_core: Smallest number of events of an item; 1 drops no item.

    Returns:
      The remaining events, possibly none.
    """
    min_events = {"user": user_core, "item": item_core}
    min_events = {role: number for role, number in min_events.items() if number > 1}
    num_events = _count_events(frame) if min_events else 0
    rounds_without_drop = 0
    while rounds_without_drop < len(min_events):
        for role, number in min_events.items():
            counts = frame.group_by(role).agg(nw.len().alias("events"))
            frequent = counts.filter(nw.col("events") >= number).select(role)
            frame = materialise(frame.join(frequent, on=role, how="semi"))
            num_before, num_events = num_events, _count_events(frame)
            rounds_without_drop = rounds_without_drop + 1 if num_events == num_before else 0
            if rounds_without_drop == len(min_events):
                break
    return frame


def _count_events(frame: nw.LazyFrame[Any]) -> int:
    return int(collect(frame.select(nw.len())).item())
