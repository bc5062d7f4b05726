"""Logs from frames: pandas, Polars, PyArrow, DuckDB, Spark."""

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
    """The log in a frame of pandas, Polars, PyArrow, DuckDB or another library of narwhals.

    Args:
      frame: The frame, eager or lazy. The rows of a lazy frame have no order, except in Polars.
        Name an integer column with their order: `columns={"row": COLUMN}`. Without this column, the
        reader loads a DuckDB relation into memory in its own order, and refuses a Spark frame.
      columns: The column name of each role. The reader finds common names itself.
      time_unit: A key of `TIME_UNITS`. Columns of dates or datetimes need none.
      where: A name for the frame in error messages and the card.

    Returns:
      The log; lazy if the frame is lazy.

    Raises:
      LogError: A column is missing, or its type does not fit its role.
    """
    columns = dict(columns or {})
    check_arguments(where, columns, time_unit)
    try:
        native = nw.from_native(frame)
    except TypeError as error:
        raise LogError(where, f"is neither a file nor a frame: {error}") from None
    schema = native.collect_schema()
    column_of = find_columns(where, list(schema), columns, {}, time_unit)
    values = {role: nw.col(str(name)) for role, name in column_of.items()}
    for role in ("user", "item"):
        dtype = schema[str(column_of[role])]
        if dtype.is_float():
            raise LogError(
                where,
                f"the {role} column {column_of[role]!r} holds {dtype}: ids must be integers or "
                "text. pandas makes floats of integers with missing values: fill them, then cast.",
            )
        values[role] = values[role].cast(nw.String())
    if "timestamp" in values:
        dtype = schema[str(column_of["timestamp"])]
        if isinstance(dtype, nw.Date | nw.Datetime):
            if native.implementation.is_pyspark():  # narwhals has no dt.timestamp for Spark
                name = str(column_of["timestamp"])
                native = nw.from_native(spark.datetimes_to_microseconds(nw.to_native(native), name))
            else:
                if isinstance(dtype, nw.Date):
                    values["timestamp"] = values["timestamp"].cast(nw.Datetime("us"))
                values["timestamp"] = values["timestamp"].dt.timestamp("us")
            time_unit = "iso"
        elif not dtype.is_numeric():
            raise LogError(
                where,
                f"the timestamp column {column_of['timestamp']!r} holds {dtype}: it must hold "
                "numbers or datetimes.",
            )
    types = {"timestamp": nw.Float64(), "rating": nw.Float64(), "fold": nw.String()}
    values = {
        role: value.cast(types[role]) if role in types else value for role, value in values.items()
    }
    events = native.select(*(value.alias(role) for role, value in values.items()))
    return Log(
        _with_row(events, where),
        where,
        "frame",
        column_of,
        [name for name in schema if name not in column_of.values()],
        time_unit,
    )


def _with_row(events: nw.DataFrame[Any] | nw.LazyFrame[Any], where: str) -> nw.LazyFrame[Any]:
    """The events as a lazy frame with a column `row`, the order of the log."""
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
        "the rows of a distributed frame have no order. Name an integer column with their order: "
        'columns={"row": COLUMN}.',
    )
