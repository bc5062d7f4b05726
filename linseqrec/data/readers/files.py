"""Log files: delimited text, JSON lines and Parquet, plain or gzip."""

import codecs
import dataclasses
import glob
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import narwhals as nw
import polars as pl

from linseqrec.data.readers import detection, raw_lines, spark, times
from linseqrec.data.readers.formats import MISSING, Format
from linseqrec.data.readers.frames import read_frame
from linseqrec.data.readers.log import (
    REQUIRED,
    WRITTEN,
    Log,
    check_arguments,
    check_distinct,
    find_columns,
)
from linseqrec.errors import LogError, first_line


def read_file(
    path: str | Path,
    *,
    format: str | None = None,
    columns: Mapping[str, str | int] | None = None,
    time_unit: str | None = None,
    separator: str | None = None,
    session: Any = None,
) -> Log:
    """The log in a file, plain or gzip.

    Args:
      path: The file, or a folder of Parquet files, read in the order of their names.
      format: A key of `FORMATS`. None: detected from the file.
      columns: The column of each role (user, item, timestamp, rating, behaviour, fold): a name, or
        a position from 0 in a file without header. It overrides the column of the format.
      time_unit: A key of `TIME_UNITS`. It overrides the unit of the format.
      separator: The text between two fields of a CSV file: one ASCII character, possibly repeated.
        None: detected from the first line.
      session: A Spark session that reads the file in place of Polars. It reads Parquet and
        delimited text, but not JSON.

    Returns:
      The log. The engine reads the values when it collects the frame.

    Raises:
      LogError: The file is not a log of this format. The message names the first wrong line.
    """
    path = Path(path)
    columns = dict(columns or {})
    check_arguments(str(path), columns, time_unit)
    if "row" in columns:
        raise LogError(
            str(path),
            "the column role row is for frames, but a file has its own order: leave it out.",
        )
    files = raw_lines.parquet_files(path)
    head = raw_lines.read_head(files[0] if files else path)
    log_format = detection.choose_format(head, format, columns, separator)
    unit = time_unit or log_format.time_unit
    if session is not None:
        spark.check_readable(path, log_format, is_gzip=raw_lines.is_gzip(head.path))
    if log_format.kind == "parquet":
        return _read_parquet(path, files or [path], columns, time_unit, session)
    if log_format.kind == "json":
        log = _read_json(head, log_format, columns, unit)
    else:
        log = _read_text(head, log_format, columns, unit, session)
    return dataclasses.replace(log, unit_named=time_unit is not None)


def _read_parquet(
    path: Path,
    files: list[Path],
    columns: dict[str, str | int],
    time_unit: str | None,
    session: Any,
) -> Log:
    digest = raw_lines.sha256_of_files(files)
    engine_errors: tuple[type[Exception], ...] = (nw.exceptions.NarwhalsError, *spark.errors())
    try:
        if session is None:
            schemas = [_schema_of(file) for file in files]
            frame = _scan_parquet(files, schemas)
        else:
            frame = spark.scan_parquet(session, files)
            columns = {**columns, "row": spark.ROW}
        log = read_frame(frame, columns=columns, time_unit=time_unit, where=str(path))
    except engine_errors as error:
        raise LogError(
            str(path),
            f"cannot be read: {first_line(error)}. If the file is damaged, download it again.",
        ) from None
    if session is None:
        _check_same_types(path, files, schemas, [str(name) for name in log.columns.values()])
    columns_of_file = {role: name for role, name in log.columns.items() if role != "row"}
    return dataclasses.replace(log, format="parquet", columns=columns_of_file, sha256=digest)


def _schema_of(file: Path) -> pl.Schema:
    try:
        return pl.scan_parquet(file, glob=False).collect_schema()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise LogError(
            str(file),
            f"cannot be read: {first_line(error)}. If the file is damaged, download it again.",
        ) from None


def _scan_parquet(files: list[Path], schemas: list[pl.Schema]) -> pl.LazyFrame:
    """The columns of the first file; one whose integers differ in size between files as int64."""
    schema = {**schemas[0]}
    for name in schema:
        types = {other[name] for other in schemas if name in other}
        if len(types) > 1 and all(map(_fits_int64, types)):
            schema[name] = pl.Int64()
    return pl.scan_parquet(
        files,
        glob=False,
        schema=schema,
        extra_columns="ignore",
        cast_options=pl.ScanCastOptions(integer_cast="upcast"),
    )


def _fits_int64(dtype: pl.DataType) -> bool:
    return dtype in (pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32)


def _check_same_types(
    path: Path, files: list[Path], schemas: list[pl.Schema], names: list[str]
) -> None:
    """Raises `LogError` for a file whose columns do not fit those of the first."""
    for file, schema in zip(files, schemas, strict=True):
        for name in names:
            expected, found = schemas[0][name], schema.get(name)
            if found is None:
                reason = f"{file.name} has no column {name!r}, but {files[0].name} has one"
            elif not _fit_together(expected, found):
                reason = f"{file.name} holds {name!r} as {found}, but {files[0].name} as {expected}"
            else:
                continue
            raise LogError(str(path), f"{reason}: write all files with the same columns and types.")


def _fit_together(first: pl.DataType, second: pl.DataType) -> bool:
    if isinstance(first, pl.Datetime) and isinstance(second, pl.Datetime):
        return first.time_unit == second.time_unit  # whatever their zones, Parquet holds UTC
    return first == second or (_fits_int64(first) and _fits_int64(second))


def _read_text(
    head: raw_lines.Head,
    log_format: Format,
    columns: dict[str, str | int],
    unit: str | None,
    session: Any,
) -> Log:
    where = str(head.path)
    first_fields = detection.split_fields(head.lines[0], log_format)
    if log_format.header:
        repeated = {name for name in first_fields if first_fields.count(name) > 1}
        if repeated:
            raise LogError(
                where, f"the header repeats {sorted(repeated)}: each name must be unique.", line=1
            )
        column_of = find_columns(where, first_fields, columns, log_format.columns, unit)
        positions = {role: first_fields.index(str(name)) for role, name in column_of.items()}
        num_fields, names = len(first_fields), first_fields
    else:
        num_fields = log_format.num_fields or len(first_fields)
        positions = _find_positions(where, {**log_format.columns, **columns}, num_fields, unit)
        check_distinct(where, positions, columns)
        column_of = {**positions}
        names = [str(position) for position in range(num_fields)]
    shape = raw_lines.check_shape(head.path, log_format, num_fields)
    exact = False
    if "timestamp" in positions:
        first_time = _first_time(head, log_format, positions["timestamp"])
        unit = unit or ("iso" if detection.is_iso(first_time) else None)
        exact = times.needs_exact(first_time)
    if session is None:
        scan = _scan_text(head.path, log_format, num_fields, quotes=shape.quotes)
        # Polars separates by one byte, so that it reads an empty field between the bytes of "::".
        step = len(log_format.separator)
        name_of = {role: str(step * position) for role, position in positions.items()}
        frame = _parse_columns(scan, name_of, unit, exact=exact)
    else:
        if shape.quotes:  # Polars refuses wrong quotes; Spark would read them as something else
            raw_lines.check_quotes(head.path, log_format.separator)
        frame = spark.scan_text(
            session,
            head.path,
            log_format,
            num_fields,
            positions,
            unit,
            quotes=shape.quotes,
            exact=exact,
        )
    frame = _finish_times(frame, unit, exact=exact)
    return Log(
        frame,
        where,
        log_format.name,
        column_of,
        [name for position, name in enumerate(names) if position not in positions.values()],
        unit,
        shape.sha256,
        first_line=2 if log_format.header else 1,
        separator=log_format.separator,
    )


def _find_positions(
    where: str, requested: dict[str, str | int], num_fields: int, unit: str | None
) -> dict[str, int]:
    """The position of each role in a file without header."""
    for role in REQUIRED:
        if role not in requested and not (role == "timestamp" and unit == "order"):
            raise LogError(
                where,
                f"--columns names no position for the {role}. Add {role}=POSITION, from 0 to "
                f"{num_fields - 1}.",
            )
    positions: dict[str, int] = {}
    for role, position in requested.items():
        if not isinstance(position, int):
            raise LogError(
                where,
                f"--columns={role}={position} names a column, but the file has no header: name the "
                f"{role} by position, from 0 to {num_fields - 1}.",
            )
        if not 0 <= position < num_fields:
            raise LogError(
                where,
                f"--columns={role}={position}, but a line has {num_fields} fields: the position "
                f"must be from 0 to {num_fields - 1}.",
                line=1,
            )
        if not (role == "timestamp" and unit == "order"):
            positions[role] = position
    return positions


def _finish_times(frame: nw.LazyFrame[Any], unit: str | None, *, exact: bool) -> nw.LazyFrame[Any]:
    """The frame with ISO 8601 text, or integers too large for float64, as float64."""
    if unit == "iso":
        return times.with_microseconds(frame, "timestamp")
    if exact:
        return frame.with_columns(times.whole_microseconds(nw.col("timestamp")).alias("timestamp"))
    return frame


def _first_time(head: raw_lines.Head, log_format: Format, position: int) -> str:
    """The first time of the log's first lines that is not missing; "" without one."""
    lines = head.lines[1:] if log_format.header else head.lines
    fields = (detection.split_fields(line, log_format) for line in lines)
    texts = (line[position] for line in fields if len(line) > position)
    return next((text for text in texts if text not in MISSING), "")


def _scan_text(path: Path, log_format: Format, num_fields: int, *, quotes: bool) -> pl.LazyFrame:
    """Every field as text, in a column named by its position.

    The file must have passed `check_shape`, so that each line is one row.
    """
    step = len(log_format.separator)
    return pl.scan_csv(
        path,
        separator=log_format.separator[0],
        has_header=False,
        skip_lines=int(log_format.header),
        schema={str(position): pl.String for position in range(step * (num_fields - 1) + 1)},
        quote_char='"' if quotes else None,
        row_index_name=spark.ROW,
        glob=False,
    )


def _parse_columns(
    frame: pl.LazyFrame, names: dict[str, str], unit: str | None, *, exact: bool
) -> nw.LazyFrame[Any]:
    """The columns of the roles in their types; a value that cannot be parsed becomes null.

    Args:
      frame: The log.
      names: The column of each role.
      unit: The time unit, or None if it is not known. Times of the unit "iso" stay text.
      exact: Whether times are integers too large for float64; they become int64.
    """
    values = {role: pl.col(name) for role, name in names.items()}
    values |= {name: values[role] for role, name in WRITTEN.items() if role in values}
    if "timestamp" in values and unit != "iso":
        dtype = pl.Int64 if exact else pl.Float64
        values["timestamp"] = values["timestamp"].cast(dtype, strict=False)
    if "rating" in values:
        values["rating"] = values["rating"].cast(pl.Float64, strict=False)
    return nw.from_native(
        frame.select(
            pl.col(spark.ROW).cast(pl.Int64).alias("row"),
            *(value.alias(role) for role, value in values.items()),
        )
    )


def _read_json(
    head: raw_lines.Head, log_format: Format, columns: dict[str, str | int], unit: str | None
) -> Log:
    where = str(head.path)
    with raw_lines.open_bytes(head.path) as file:
        if file.read(3) == codecs.BOM_UTF8:  # Polars takes it for a part of the first event.
            advice = "Remove it: sed '1s/^\\xEF\\xBB\\xBF//' FILE > NEW."
            raise LogError(where, f"the file begins with a byte-order mark. {advice}", line=1)
    keys = detection.json_keys(head)
    column_of = find_columns(where, keys, columns, log_format.columns, unit)
    names = {role: str(name) for role, name in column_of.items()}
    first_time = _first_json_value(head, names.get("timestamp"))
    exact = times.needs_exact(str(first_time))
    if unit is None and isinstance(first_time, str) and not times.is_number(first_time):
        unit = "iso"
    shape = raw_lines.check_shape(head.path, log_format, 0)
    numbers = {names[role] for role in ("timestamp", "rating") if role in names}
    # A number in a column of text keeps all its digits.
    if exact or isinstance(first_time, str) or unit == "iso":
        numbers.discard(names.get("timestamp", ""))
    schema = {name: pl.Float64 if name in numbers else pl.String for name in names.values()}
    # Polars takes the path for a pattern.
    scan = pl.scan_ndjson(glob.escape(where), schema=schema, row_index_name=spark.ROW)
    frame = _parse_columns(scan, names, unit, exact=exact)
    return Log(
        _finish_times(frame, unit, exact=exact),
        where,
        log_format.name,
        column_of,
        [name for name in keys if name not in names.values()],
        unit,
        shape.sha256,
        first_line=1,
    )


def _first_json_value(head: raw_lines.Head, name: str | None) -> Any:
    """The first value of a key in the log's first lines that is not missing, or None."""
    for line in head.lines:
        try:
            value = json.loads(line).get(name)
        except (ValueError, AttributeError):  # `check_json` names the line
            continue
        if value is not None and value not in MISSING:
            return value
    return None
