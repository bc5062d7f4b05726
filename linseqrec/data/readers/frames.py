"""Logs from frames: pandas, Polars, PyArrow, DuckDB, Spark."""

from collections.abc import Mapping
from typing import Any

import narwhals as nw

from linseqrec.data.readers import spark, times
from linseqrec.data.readers.log import WRITTEN, Log, check_arguments, find_columns
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
      time_unit: A key of `TIME_UNITS`. Columns of dates, datetimes or ISO 8601 text need none.
      where: A name for the frame in error messages and the card.

    Returns:
      The log; lazy if the frame is lazy.

    Raises:
      LogError: A column is missing, its type does not fit its role, or the names of the columns
        repeat or are no text.
    """
    columns = dict(columns or {})
    named = time_unit is not None
    check_arguments(where, columns, time_unit)
    try:
        native = nw.from_native(frame)
        schema = native.collect_schema()
    except TypeError as error:
        raise LogError(where, f"is neither a file nor a frame: {error}") from None
    except nw.exceptions.DuplicateError:
        raise LogError(where, "the frame repeats a column: each name must be unique.") from None
    not_text = [name for name in schema if not isinstance(name, str)]
    if not_text:
        raise LogError(
            where,
            f"the frame has columns whose names are no text, such as {not_text[0]!r}. Name all "
            'columns: frame.columns = ["user", "item", ...].',
        )
    column_of = find_columns(where, list(schema), columns, {}, time_unit)
    values = {role: nw.col(str(name)) for role, name in column_of.items()}
    if "row" in column_of and not (dtype := schema[str(column_of["row"])]).is_integer():
        raise LogError(
            where, f"the row column {column_of['row']!r} holds {dtype}: it must hold integers."
        )
    float_ids = []
    for role in ("user", "item"):
        dtype = schema[str(column_of[role])]
        if dtype.is_nested() or _is_nested(native, str(column_of[role]), dtype):
            raise LogError(
                where,
                f"the {role} column {column_of[role]!r} holds {dtype}: ids must be integers or "
                "text. Write one value of each as the id.",
            )
        if dtype.is_float() or dtype.is_decimal():
            # pandas makes floats of integers with missing values.
            float_ids.append(role)
            # Larger floats have gaps, so that they may not be the ids that they once were.
            limit = 2**24 if dtype == nw.Float32 else 2**53
            values[role] = _whole_text(values[role], limit)
        else:
            values[role] = values[role].cast(nw.String())
    texts = (nw.String, nw.Categorical, nw.Enum, nw.Object)
    rated_in_text = "rating" in values and schema[str(column_of["rating"])] in texts
    is_text = False
    if "timestamp" in values:
        name = str(column_of["timestamp"])
        dtype, time = schema[name], values["timestamp"]
        values[WRITTEN["timestamp"]] = time
        is_text = dtype in (nw.String, nw.Categorical, nw.Enum)
        if isinstance(dtype, nw.Date | nw.Datetime):
            if native.implementation.is_pyspark():  # narwhals has no dt.timestamp for Spark
                native = nw.from_native(spark.datetimes_to_microseconds(nw.to_native(native), name))
            elif native.implementation.is_duckdb():  # nor for DuckDB
                quoted = '"' + name.replace('"', '""') + '"'
                microseconds = f"* REPLACE (epoch_us({quoted}) AS {quoted})"
                native = nw.from_native(nw.to_native(native).project(microseconds))
            else:
                if isinstance(dtype, nw.Date):
                    time = time.cast(nw.Datetime("us"))
                values["timestamp"] = time.dt.timestamp("us")
            time_unit = "iso"
        elif is_text:
            values["timestamp"] = time.cast(nw.String())
            time_unit = "iso"
        elif not dtype.is_numeric() or time_unit == "iso":
            needed = "dates" if dtype.is_numeric() else "numbers, dates or ISO 8601 text"
            raise LogError(
                where,
                f"the timestamp column {name!r} holds {dtype}: it must hold {needed}. "
                f"{times.FORMS}.",
            )
        elif dtype.is_integer():
            values["timestamp"] = times.whole_microseconds(time)
    rating = nw.String() if rated_in_text else nw.Float64()
    types = {"rating": rating, "behaviour": nw.String(), "fold": nw.String()}
    if not is_text:
        types["timestamp"] = nw.Float64()
    values = {
        role: value.cast(types[role]) if role in types else value for role, value in values.items()
    }
    if "rating" in values:
        values[WRITTEN["rating"]] = values["rating"]
    selected = native.select(*(value.alias(role) for role, value in values.items()))
    events = _with_row(selected, where)
    if is_text:
        events = times.with_microseconds(events, "timestamp")
    if rated_in_text:
        is_number = nw.col("rating").str.contains(rf"^{times.NUMBER}\z")
        number = nw.when(is_number).then(nw.col("rating")).cast(nw.Float64())
        events = events.with_columns(number.alias("rating"))
    return Log(
        events,
        where,
        "frame",
        column_of,
        [name for name in schema if name not in column_of.values()],
        time_unit,
        unit_named=named,
        float_ids=tuple(float_ids),
    )


def _is_nested(frame: Any, name: str, dtype: Any) -> bool:
    """Whether a column of Python objects in memory, as pandas has it, holds lists or dicts."""
    if dtype != nw.Object or isinstance(frame, nw.LazyFrame):
        return False
    return any(isinstance(value, list | tuple | dict | set) for value in frame[name].to_list())


def _whole_text(value: nw.Expr, limit: int) -> nw.Expr:
    """Floats as text: whole numbers below the limit without a fraction, others with one."""
    whole = (value % 1 == 0) & (value.abs() < limit)
    integer = nw.when(whole).then(value).otherwise(nw.lit(0)).cast(nw.Int64()).cast(nw.String())
    return nw.when(whole).then(integer).otherwise(value.cast(nw.String()))


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
