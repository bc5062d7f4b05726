"""A log as one lazy frame of events, whatever file or frame it came in."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import narwhals as nw
import polars as pl

from linseqrec.data.readers import detection, source
from linseqrec.data.readers.errors import LogError
from linseqrec.data.readers.formats import FORMATS, ROLES, TIME_UNITS, Format

_REQUIRED = ("user", "item", "timestamp")


@dataclasses.dataclass(frozen=True)
class Log:
    """Events in the order of the log, not yet checked.

    Attributes:
      frame: Columns `row` (int64, from 0), `user`, `item` (text), `timestamp` (float64 in
        `time_unit`; absent where the unit is "order"), and where the log has them `rating`
        (float64) and `fold` (text). A value that could not be read is null.
      where: The file, or what the frame is; stands in messages and in the card.
      format: The dialect's name, or "frame".
      columns: Role to the column it was read from.
      ignored: Columns of the log that play no role.
      time_unit: A key of `TIME_UNITS`; None to be told by the magnitude of the values.
      sha256: Of the file; None for a frame.
      first_line: The line of row 0; None for frames and Parquet, whose rows are named instead.
    """

    frame: nw.LazyFrame[Any]
    where: str
    format: str
    columns: dict[str, str | int]
    ignored: list[str]
    time_unit: str | None
    sha256: str | None = None
    first_line: int | None = None

    def error(self, row: int | None, reason: str) -> LogError:
        """A `LogError` at a row, named by its line where the log has lines."""
        if row is None or self.first_line is None:
            return LogError(self.where, reason, row=row)
        line = row + self.first_line
        text = source.read_line(Path(self.where), line)
        return LogError(self.where, f"{reason} The line: {text!r}.", line=line)

    def unreadable(self, error: Exception) -> LogError:
        """What stands behind an engine's refusal to read the log."""
        if self.format in FORMATS and FORMATS[self.format].kind == "json":
            numbers = {
                str(self.columns[role]) for role in ("timestamp", "rating") if role in self.columns
            }
            source.check_json(Path(self.where), numbers)
        return LogError(self.where, f"cannot be read: {str(error).splitlines()[0]}")


def read_file(
    path: str | Path,
    *,
    format: str | None = None,
    columns: Mapping[str, str | int] | None = None,
    time_unit: str | None = None,
) -> Log:
    """Reads a log file, plain or gzip.

    Args:
      path: The file.
      format: A key of `FORMATS`; told from the file where None.
      columns: Role (user, item, timestamp, rating, fold) to column name, or to position from 0
        for a file without header; overrides the dialect's own.
      time_unit: A key of `TIME_UNITS`; overrides the dialect's own.

    Returns:
      The log; its values are read when its frame is collected.

    Raises:
      LogError: The file is no log of that format; the message names the line.
    """
    path = Path(path)
    columns = dict(columns or {})
    _check_arguments(str(path), columns, time_unit)
    head = source.read_head(path)
    headerless = any(isinstance(column, int) for column in columns.values())
    chosen = detection.choose_format(head, format, bool(columns), headerless)
    unit = time_unit or chosen.time_unit
    wanted = {**chosen.columns, **columns}
    if chosen.kind == "parquet":
        frame = nw.from_native(pl.scan_parquet(path))
        log = read_frame(frame, columns=columns, time_unit=time_unit, where=str(path))
        digest = source.check_shape(path, chosen, 0).sha256
        return dataclasses.replace(log, format=chosen.name, sha256=digest)
    if chosen.kind == "json":
        return _read_json(head, chosen, wanted, unit)
    return _read_text(head, chosen, wanted, unit)


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
    _check_arguments(where, columns, time_unit)
    try:
        native = nw.from_native(frame)
    except TypeError as error:
        raise LogError(where, f"is neither a file nor a frame: {error}") from None
    schema = native.collect_schema()
    found = _find_columns(where, list(schema), columns, time_unit)
    lazy = _with_row(native, found, where)
    taken = {role: nw.col(str(name)) for role, name in found.items() if role != "row"}
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
        if dtype.is_temporal():
            taken["timestamp"] = taken["timestamp"].cast(nw.Datetime("us")).dt.timestamp("us")
            time_unit = "iso"
        elif not dtype.is_numeric():
            raise LogError(
                where,
                f"the timestamp column {found['timestamp']!r} holds {dtype}: make it numbers or "
                "datetimes.",
            )
    for role in ("timestamp", "rating"):
        if role in taken:
            taken[role] = taken[role].cast(nw.Float64())
    if "fold" in taken:
        taken["fold"] = taken["fold"].cast(nw.String())
    return Log(
        lazy.select(nw.col("row"), *(expression.alias(role) for role, expression in taken.items())),
        where,
        "frame",
        found,
        [name for name in schema if name not in found.values()],
        time_unit,
    )


def _check_arguments(where: str, columns: Mapping[str, str | int], time_unit: str | None) -> None:
    unknown = set(columns) - set(ROLES)
    if unknown:
        raise LogError(where, f"unknown column roles {sorted(unknown)}; known: {', '.join(ROLES)}.")
    if time_unit is not None and time_unit not in TIME_UNITS:
        raise LogError(where, f"unknown time unit {time_unit!r}; known: {', '.join(TIME_UNITS)}.")


def _find_columns(
    where: str, names: list[str], wanted: Mapping[str, str | int], time_unit: str | None
) -> dict[str, str | int]:
    """Role to column: as the caller or the dialect names it, else by common names."""
    found: dict[str, str | int] = {}
    for role in ROLES:
        column = (
            detection.find_column(names, str(wanted[role]))
            if role in wanted
            else detection.guess_column(names, role)
        )
        if column is not None and not (role == "timestamp" and time_unit == "order"):
            found[role] = column
        elif role in _REQUIRED and not (role == "timestamp" and time_unit == "order"):
            called = f"{wanted[role]!r} for the {role}" if role in wanted else f"for the {role}"
            hint = "; a log without time needs time_unit=order" if role == "timestamp" else ""
            raise LogError(
                where,
                f"no column {called} among {', '.join(names)}. Name it: columns {role}=…{hint}.",
            )
        elif role in wanted and role not in _REQUIRED and role != "rating":
            raise LogError(where, f"no column {wanted[role]!r} among {', '.join(names)}.")
    return found


def _with_row(
    frame: nw.DataFrame[Any] | nw.LazyFrame[Any], found: dict[str, str | int], where: str
) -> nw.LazyFrame[Any]:
    """The frame, lazy, with its rows numbered in the log's order."""
    if "row" in found:
        return frame.lazy().with_columns(row=nw.col(str(found["row"])))
    if isinstance(frame, nw.DataFrame):
        return frame.with_row_index("row").lazy(backend="polars")
    if frame.implementation.is_polars():
        return nw.from_native(nw.to_native(frame).with_row_index("row"))
    if frame.implementation.is_duckdb():
        return frame.collect(backend="polars").with_row_index("row").lazy()
    raise LogError(
        where,
        "a distributed frame has no order of rows: name an integer column that has it "
        "(columns row=…).",
    )


def _read_text(
    head: source.Head, chosen: Format, wanted: dict[str, str | int], unit: str | None
) -> Log:
    where = str(head.path)
    fields = detection.split_fields(head.lines[0], chosen)
    if chosen.header:
        names = fields
        repeated = {name for name in names if names.count(name) > 1}
        if repeated:
            raise LogError(where, f"the header repeats {sorted(repeated)}.", line=1)
        found = _find_columns(where, names, wanted, unit)
        chosen_names = {role: str(name) for role, name in found.items()}
        num_fields = len(names)
    else:
        num_fields = chosen.num_fields or len(fields)
        names = [str(position) for position in range(num_fields)]
        found = _by_position(where, wanted, num_fields, unit)
        chosen_names = {role: str(position) for role, position in found.items()}
    shape = source.check_shape(head.path, chosen, num_fields)
    frame = _scan_text(head.path, chosen, names, quotes=shape.quotes)
    if unit is None and "timestamp" in found:
        unit = _told_iso(head, chosen, names.index(chosen_names["timestamp"]))
    return Log(
        nw.from_native(_typed(frame, chosen_names, unit)),
        where,
        chosen.name,
        found,
        [name for name in names if name not in chosen_names.values()],
        unit,
        shape.sha256,
        first_line=2 if chosen.header else 1,
    )


def _by_position(
    where: str, wanted: dict[str, str | int], num_fields: int, unit: str | None
) -> dict[str, str | int]:
    for role in _REQUIRED:
        if role not in wanted and not (role == "timestamp" and unit == "order"):
            raise LogError(where, f"no position is named for the {role} (columns {role}=…).")
    found: dict[str, str | int] = {}
    for role, position in wanted.items():
        if not isinstance(position, int):
            raise LogError(
                where, f"the file has no header: name the {role} by position, not {position!r}."
            )
        if not 0 <= position < num_fields:
            raise LogError(where, f"no field {position} for the {role} among {num_fields}.", line=1)
        if not (role == "timestamp" and unit == "order"):
            found[role] = position
    return found


def _told_iso(head: source.Head, chosen: Format, position: int) -> str | None:
    """The unit iso where the first event's time is written so, else None (some number)."""
    lines = head.lines[1:] if chosen.header else head.lines
    fields = detection.split_fields(lines[0], chosen) if lines else []
    return "iso" if len(fields) > position and detection.is_iso(fields[position]) else None


def _scan_text(path: Path, chosen: Format, names: list[str], *, quotes: bool) -> pl.LazyFrame:
    """Every field as text. `check_shape` has passed, so that rows are lines."""
    # Polars separates by one byte: between the two of "::" it sees an empty field, dropped again.
    step = len(chosen.separator)
    padded = [
        name if position == 0 else f"{name}/{position}"
        for name in names
        for position in range(step)
    ]
    padded = padded[: len(padded) - (step - 1)]
    return pl.scan_csv(
        path,
        separator=chosen.separator[0],
        has_header=chosen.header,
        schema=dict.fromkeys(padded, pl.String),
        quote_char='"' if quotes else None,
        row_index_name="row",
        glob=False,
    )


def _typed(frame: pl.LazyFrame, names: dict[str, str], unit: str | None) -> pl.LazyFrame:
    """The roles' columns in their types; what does not read becomes null."""
    taken = {role: pl.col(name) for role, name in names.items()}
    if "timestamp" in taken:
        if unit == "iso":
            text = taken["timestamp"].str.replace("T", " ", literal=True).str.strip_suffix("Z")
            taken["timestamp"] = text.str.to_datetime(
                "%Y-%m-%d %H:%M:%S%.f", time_unit="us", strict=False
            ).dt.epoch("us")
        taken["timestamp"] = taken["timestamp"].cast(pl.Float64, strict=False)
    if "rating" in taken:
        taken["rating"] = taken["rating"].cast(pl.Float64, strict=False)
    return frame.select(
        pl.col("row").cast(pl.Int64), *(value.alias(role) for role, value in taken.items())
    )


def _read_json(
    head: source.Head, chosen: Format, wanted: dict[str, str | int], unit: str | None
) -> Log:
    where = str(head.path)
    try:
        first = json.loads(head.lines[0])
    except ValueError as error:
        raise LogError(where, f"no JSON object: {error}.", line=1) from None
    if not isinstance(first, dict):
        raise LogError(where, "no JSON object.", line=1)
    found = _find_columns(where, list(first), wanted, unit)
    names = {role: str(name) for role, name in found.items()}
    shape = source.check_shape(head.path, chosen, 0)
    numbers = {names[role] for role in ("timestamp", "rating") if role in names and unit != "iso"}
    schema = {name: pl.Float64 if name in numbers else pl.String for name in names.values()}
    frame = pl.scan_ndjson(head.path, schema=schema, row_index_name="row")
    return Log(
        nw.from_native(_typed(frame, names, unit)),
        where,
        chosen.name,
        found,
        [name for name in first if name not in names.values()],
        unit,
        shape.sha256,
        first_line=1,
    )
