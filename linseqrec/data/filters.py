"""What preparation drops and how it numbers ids: narwhals expressions, for any of its engines.

Frames hold one event a row: `row` (the order of the log), `user`, `item`, `timestamp` (absent where
the log has no time).
"""

from collections.abc import Mapping
from typing import Any

import narwhals as nw

DUPLICATES = ("keep", "first", "last", "error")


def materialise(frame: nw.LazyFrame[Any]) -> nw.LazyFrame[Any]:
    """Computes a frame so far, where it is: it is read several times, but need not be computed so.

    Polars computes out of core; Spark keeps the result on its workers. Other engines' frames stay
    lazy: each use computes them anew.
    """
    if frame.implementation.is_polars():
        return frame.collect(engine="streaming").lazy()
    if frame.implementation.is_pyspark():
        return nw.from_native(nw.to_native(frame).localCheckpoint())
    return frame


def count(frame: nw.LazyFrame[Any]) -> dict[str, int]:
    """Users, items and events of a frame."""
    found = frame.select(
        users=nw.col("user").n_unique(), items=nw.col("item").n_unique(), events=nw.len()
    )
    return {name: int(value) for name, value in collect(found).row(0, named=True).items()}


def collect(frame: nw.LazyFrame[Any]) -> Any:
    """A frame as a Polars frame in memory."""
    if frame.implementation.is_polars():
        return frame.collect(engine="streaming").to_native()
    return frame.collect(backend="polars").to_native()


def id_table(frame: nw.LazyFrame[Any], role: str) -> nw.LazyFrame[Any]:
    """Distinct ids with a code from 0: shorter ids first, then by their text.

    The order does not depend on the order of the log, and numbers stand by their value.

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
    """Replaces ids by their codes (int32), and so shrinks the frame before it is filtered.

    Args:
      frame: Events with original ids.
      tables: `id_table` by role.
    """
    for role, table in tables.items():
        coded = table.select(nw.col("id").alias(role), nw.col("code").alias(f"{role}_code"))
        frame = frame.join(coded, on=role, how="inner")
    frame = frame.drop(*tables).rename({f"{role}_code": role for role in tables})
    return materialise(frame)


def repeated(keep: str) -> nw.Expr:
    """True at events that equal another in user, item and time, except at the one kept.

    Args:
      keep: "first" or "last" in the order of the log.
    """
    row = nw.col("row")
    kept = row.min() if keep == "first" else row.max()
    return row != kept.over("user", "item", "timestamp")


def core(frame: nw.LazyFrame[Any], user_core: int, item_core: int) -> nw.LazyFrame[Any]:
    """Drops users and items with too few events until none is left to drop.

    The result is the largest set of events in which each user has at least `user_core` and each
    item at least `item_core` of them; it is unique, whatever is dropped first.

    Args:
      frame: Events.
      user_core: Least events of a user; 1 drops none.
      item_core: Least events of an item; 1 drops none.

    Returns:
      The events left, maybe none.
    """
    least = {"user": user_core, "item": item_core}
    least = {role: number for role, number in least.items() if number > 1}
    left, settled = _count_events(frame) if least else 0, 0
    while settled < len(least):  # every rule in turn has dropped nothing
        for role, number in least.items():
            counts = frame.group_by(role).agg(nw.len().alias("events"))
            enough = counts.filter(nw.col("events") >= number).select(role)
            kept = materialise(frame.join(enough, on=role, how="semi"))
            before, left = left, _count_events(kept)
            frame, settled = kept, settled + 1 if left == before else 0
            if settled == len(least):
                break
    return frame


def _count_events(frame: nw.LazyFrame[Any]) -> int:
    return int(collect(frame.select(nw.len())).item())
