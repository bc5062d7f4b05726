"""Log files: delimited text, JSON lines and Parquet, plain or gzip."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import narwhals as nw
import polars as pl

from linseqrec.data.readers import detection, source, spark
from linseqrec.data.readers.formats import Format
from linseqrec.data.readers.frames import read_frame
from linseqrec.data.readers.log import REQUIRED, Log, check_arguments, find_columns
from linseqrec.errors import LogError


def read_file(
    path: str | Path,
    *,
    format: str | None = None,
    columns: Mapping[str, str | int] | None = None,
    time_unit: str | None = None,
    session: Any = None,
) -> Log:
    """Reads a log file, plain or gzip.

    Args:
      path: The file, or a folder of Parquet files, whose rows follow in the order of their names.
      format: A key of `FORMATS`; told from the file where None.
      columns: Role (user, item, timestamp, rating, fold) to column name, or to position from 0
        for a file without header; overrides the dialect's own.
      time_unit: A key of `TIME_UNITS`; overrides the dialect's own.
      session: A Spark session to read by instead of Polars (Parquet and delimited text only).

    Returns:
      The log; its values are read when its frame is collected.

    Raises:
      LogError: The file is no log of that format; the message names the line.
    """
    path = Path(path)
    columns = dict(columns or {})
    check_arguments(str(path), columns, time_unit)
    if "row" in columns:
        raise LogError(str(path), "a file has its own order: the role row is for frames.")
    files = source.parquet_files(path)
    head = source.read_head(files[0] if files else path)
    headerless = any(isinstance(column, int) for column in columns.values())
    chosen = detection.choose_format(head, format, bool(columns), headerless)
    unit = time_unit or chosen.time_unit
    if session is not None:
        spark.check_readable(path, chosen, packed=source.is_gzip(head.path))
    if chosen.kind == "parquet":
        return _read_parquet(path, files or [path], columns, time_unit, session)
    if chosen.kind == "json":
        return _read_json(head, chosen, columns, unit)
    return _read_text(head, chosen, columns, unit, session)


def _read_parquet(
    path: Path,
    files: list[Path],
    columns: dict[str, str | int],
    time_unit: str | None,
    session: Any,
) -> Log:
    digest = source.sha256_of_files(files)
    damaged: tuple[type[Exception], ...] = (nw.exceptions.NarwhalsError, *spark.errors())
    try:
        if session is None:
            frame = pl.scan_parquet(files, glob=False)
        else:
            frame = spark.scan_parquet(session, files)
            columns = {**columns, "row": spark.ROW}
        log = read_frame(frame, columns=columns, time_unit=time_unit, where=str(path))
    except damaged as error:
        raise LogError(str(path), f"cannot be read: {str(error).splitlines()[0]}") from None
    named = {role: name for role, name in log.columns.items() if role != "row"}
    return dataclasses.replace(log, format="parquet", columns=named, sha256=digest)


def _read_text(
    head: source.Head,
    chosen: Format,
    columns: dict[str, str | int],
    unit: str | None,
    session: Any,
) -> Log:
    where = str(head.path)
    first = detection.split_fields(head.lines[0], chosen)
    if chosen.header:
        repeated = {name for name in first if first.count(name) > 1}
        if repeated:
            raise LogError(where, f"the header repeats {sorted(repeated)}.", line=1)
        found = find_columns(where, first, columns, chosen.columns, unit)
        positions = {role: first.index(str(name)) for role, name in found.items()}
        num_fields, names = len(first), first
    else:
        num_fields = chosen.num_fields or len(first)
        positions = _positions(where, {**chosen.columns, **columns}, num_fields, unit)
        found = {**positions}
        names = [str(position) for position in range(num_fields)]
    shape = source.check_shape(head.path, chosen, num_fields)
    if unit is None and "timestamp" in positions:
        unit = _told_iso(head, chosen, positions["timestamp"])
    if session is None:
        scanned = _scan_text(head.path, chosen, num_fields, quotes=shape.quotes)
        # Polars separates by one byte: between the two of "::" it sees an empty field.
        step = len(chosen.separator)
        taken = {role: str(step * position) for role, position in positions.items()}
        frame = nw.from_native(_typed(scanned, taken, unit))
    else:
        if shape.quotes:  # which Polars refuses by itself, and Spark reads somehow
            source.check_quotes(head.path, chosen.separator)
        frame = spark.scan_text(
            session, head.path, chosen, num_fields, positions, unit, quotes=shape.quotes
        )
    return Log(
        frame,
        where,
        chosen.name,
        found,
        [name for position, name in enumerate(names) if position not in positions.values()],
        unit,
        shape.sha256,
        first_line=2 if chosen.header else 1,
    )


def _positions(
    where: str, wanted: dict[str, str | int], num_fields: int, unit: str | None
) -> dict[str, int]:
    """Role to position in a file without header."""
    for role in REQUIRED:
        if role not in wanted and not (role == "timestamp" and unit == "order"):
            raise LogError(where, f"no position is named for the {role} (columns {role}=…).")
    found: dict[str, int] = {}
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


def _scan_text(path: Path, chosen: Format, num_fields: int, *, quotes: bool) -> pl.LazyFrame:
    """Every field as text, named by its position. `check_shape` has passed: rows are lines."""
    step = len(chosen.separator)
    return pl.scan_csv(
        path,
        separator=chosen.separator[0],
        has_header=False,
        skip_lines=int(chosen.header),
        schema={str(position): pl.String for position in range(step * (num_fields - 1) + 1)},
        quote_char='"' if quotes else None,
        row_index_name=spark.ROW,
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
        pl.col(spark.ROW).cast(pl.Int64).alias("row"),
        *(value.alias(role) for role, value in taken.items()),
    )


def _read_json(
    head: source.Head, chosen: Format, columns: dict[str, str | int], unit: str | None
) -> Log:
    where = str(head.path)
    try:
        first = json.loads(head.lines[0])
    except ValueError as error:
        raise LogError(where, f"no JSON object: {error}.", line=1) from None
    if not isinstance(first, dict):
        raise LogError(where, "no JSON object.", line=1)
    found = find_columns(where, list(first), columns, chosen.columns, unit)
    if unit is None and "timestamp" in found and isinstance(first[str(found["timestamp"])], str):
        unit = "iso"
    names = {role: str(name) for role, name in found.items()}
    shape = source.check_shape(head.path, chosen, 0)
    numbers = {names[role] for role in ("timestamp", "rating") if role in names}
    if unit == "iso":
        numbers.discard(names["timestamp"])
    schema = {name: pl.Float64 if name in numbers else pl.String for name in names.values()}
    frame = pl.scan_ndjson(head.path, schema=schema, row_index_name=spark.ROW)
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
