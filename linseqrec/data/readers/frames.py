"""Logs that are frames already: pandas, Polars, PyArrow, DuckDB, Spark."""

from collections.abc import Mapping
from typing import Any

import narwhals as nw

from linseqrec.data.readers import spark
from linseqrec.data.readers.log import Log, check_arguments, find_columns
from linseqrec.errors import LogError


def read_frame(
    frame: Any,
    *,
    columns: Mapping[str, str | int] | None = None,
    time_unit: str | None = None,
    where: str = "frame",
) -> Log:
    """Takes a log that is a frame already: pandas, Polars, PyArrow, DuckDB, or any narwhals knows.

    Args:
      frame: The frame, eager or lazy. A lazy frame other than Polars' has no order of rows by
        itself: name an integer column that has it, `columns={"row": …}`. A DuckDB relation
        without one is read into memory in its own order.
      columns: Role to column name; common names are found by themselves.
      time_unit: A key of `TIME_UNITS`; columns of dates and times need none.
      where: What messages call it.

    Returns:
      The log, still lazy where the frame was.

    Raises:
      LogError: A column is missing or cannot hold its role.
    """
    columns = dict(columns or {})
    check_arguments(where, columns, time_unit)
    try:
        native = nw.from_native(frame)
    except TypeError as error:
        raise LogError(where, f"is neither a file nor a frame: {error}") from None
    schema = native.collect_schema()
    found = find_columns(where, list(schema), columns, {}, time_unit)
    taken = {role: nw.col(str(name)) for role, name in found.items()}
    for role in ("user", "item"):
        dtype = schema[str(found[role])]
        if dtype.is_float():
            raise LogError(
                where,
                f"the {role} column {found[role]!r} holds {dtype}: ids must be integers or text "
                "(an integer column with missing values becomes float in pandas).",
            )
        taken[role] = taken[role].cast(nw.String())
    if "timestamp" in taken:
        dtype = schema[str(found["timestamp"])]
        if isinstance(dtype, nw.Date | nw.Datetime):
            if native.implementation.is_pyspark():  # for which narwhals has no dt.timestamp
                name = str(found["timestamp"])
                native = nw.from_native(spark.datetimes_to_microseconds(nw.to_native(native), name))
            else:
                if isinstance(dtype, nw.Date):
                    taken["timestamp"] = taken["timestamp"].cast(nw.Datetime("us"))
                taken["timestamp"] = taken["timestamp"].dt.timestamp("us")
            time_unit = "iso"
        elif not dtype.is_numeric():
            raise LogError(
                where,
                f"the timestamp column {found['timestamp']!r} holds {dtype}: make it numbers or "
                "datetimes.",
            )
    types = {"timestamp": nw.Float64(), "rating": nw.Float64(), "fold": nw.String()}
    taken = {
        role: taken[role].cast(types[role]) if role in types else taken[role] for role in taken
    }
    events = native.select(*(taken[role].alias(role) for role in taken))
    return Log(
        _with_row(events, where),
        where,
        "frame",
        found,
        [name for name in schema if name not in found.values()],
        time_unit,
    )


def _with_row(events: nw.DataFrame[Any] | nw.LazyFrame[Any], where: str) -> nw.LazyFrame[Any]:
    """The events, lazy, with their rows numbered in the log's order where they are not yet."""
    if isinstance(events, nw.DataFrame):
        eager = events if "row" in events.columns else events.with_row_index("row")
        return eager.lazy(backend="polars")
    if "row" in events.collect_schema():
        return events
    if events.implementation.is_polars():
        return nw.from_native(nw.to_native(events).with_row_index("row"))
    if events.implementation.is_duckdb():
        return events.collect(backend="polars").with_row_index("row").lazy()
    raise LogError(
        where,
        "a distributed frame has no order of rows: name an integer column that has it "
        "(columns row=…).",
    )
