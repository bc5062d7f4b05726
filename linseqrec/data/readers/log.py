"""`Log`, the events of a log file or frame as one lazy frame."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import narwhals as nw

from linseqrec.data.readers import detection, raw_lines
from linseqrec.data.readers.formats import FORMATS, ROLES, TIME_UNITS
from linseqrec.errors import LogError, first_line

REQUIRED = ("user", "item", "timestamp")
# Columns of `Log.frame`. The names have spaces, so that a log is unlikely to have the same.
WRITTEN = {"timestamp": "time as the log writes it", "rating": "rating as the log writes it"}


@dataclasses.dataclass(frozen=True)
class Log:
    """Events in the order of the log. Their values are not checked yet.

    Attributes:
      frame: Columns `row` (int64, from 0), `user` and `item` (text), and `timestamp` (float64, in
        `time_unit`), not in a log with time unit "order". If the log has them, also `rating`
        (float64), `behaviour` and `fold` (text). A value that the reader cannot parse is null. The
        columns `WRITTEN` hold times and ratings as the log writes them.
      where: The file name, or a name for the frame; for error messages and the card.
      format: The name of the format, or "frame".
      columns: The column of the log for each role.
      ignored: Columns of the log without a role.
      time_unit: A key of `TIME_UNITS`. None: `checks.check_values` detects it from the values.
      sha256: Digest of the file; None for a frame.
      first_line: Line number of row 0. None for frames and Parquet: errors then name the row.
      separator: The text between two fields of delimited text.
      unit_named: Whether the caller named the time unit. The checks then take numbers as this
        unit, even if they look like something else.
      float_ids: The roles "user" and "item" whose column holds floats. The text of a whole number
        has no fraction.
    """

    frame: nw.LazyFrame[Any]
    where: str
    format: str
    columns: dict[str, str | int]
    ignored: list[str]
    time_unit: str | None
    sha256: str | None = None
    first_line: int | None = None
    separator: str = ","
    unit_named: bool = False
    float_ids: tuple[str, ...] = ()

    def error(self, row: int | None, reason: str) -> LogError:
        """A `LogError` that names the line of `row`, or `row` itself in a log without lines.

        Args:
          row: The row, from 0. None: the error concerns the whole log.
          reason: What is wrong, and what to do.
        """
        if row is None or self.first_line is None:
            return LogError(self.where, reason, row=row)
        line = row + self.first_line
        text = raw_lines.read_line(Path(self.where), line)
        return LogError(self.where, f"{reason} The line: {text!r}.", line=line)

    def written(self, role: str, row: int) -> Any:
        """The time or the rating of a row as the log writes it; None if the log has none."""
        found = self.frame.filter(nw.col("row") == row).select(WRITTEN[role])
        return found.collect(backend="polars").item()

    def check_nested(self, role: str) -> None:
        """Raises `LogError` at the first line of JSON whose id is an object or an array.

        Args:
          role: "user" or "item".
        """
        if self._kind == "json":
            raw_lines.check_json(Path(self.where), set(), {str(self.columns[role])})

    @property
    def _kind(self) -> str | None:
        return FORMATS[self.format].kind if self.format in FORMATS else None

    def unreadable(self, error: Exception) -> LogError:
        """A `LogError` for an exception that the engine raised while it read the log.

        Args:
          error: The engine's exception.

        Returns:
          An error that quotes the exception, if no line of the log explains it.

        Raises:
          LogError: A line has wrong quotes or is not a JSON object; names the line.
        """
        if self._kind == "text":
            raw_lines.check_quotes(Path(self.where), self.separator)
        if self._kind == "json":
            numeric = {"rating": True, "timestamp": False}
            if "timestamp" in self.columns:
                written = self.frame.collect_schema()[WRITTEN["timestamp"]]
                numeric["timestamp"] = written.is_numeric()
            numbers = {
                str(column) for role, column in self.columns.items() if numeric.get(role, False)
            }
            raw_lines.check_json(Path(self.where), numbers, set())
        if self._kind in ("text", "json") and raw_lines.is_gzip(Path(self.where)):
            return LogError(
                self.where,
                f"the engine cannot read the gzip file ({first_line(error)}), although it "
                "is sound: bytes that are no gzip, such as zeros, may follow its end. Write it "
                f"anew: gunzip -c {self.where} | gzip > NEW.gz",
            )
        return LogError(
            self.where,
            f"cannot be read: {first_line(error)}. If the file is damaged, download it again.",
        )


def check_arguments(where: str, columns: Mapping[str, str | int], time_unit: str | None) -> None:
    """Raises `LogError` for an unknown role or time unit."""
    unknown = set(columns) - set(ROLES)
    if unknown:
        raise LogError(
            where,
            f"--columns names the unknown roles {sorted(unknown)}; known: {', '.join(ROLES)}.",
        )
    if time_unit is not None and time_unit not in TIME_UNITS:
        raise LogError(
            where, f"time_unit={time_unit!r} is unknown; known: {', '.join(TIME_UNITS)}."
        )


def find_columns(
    where: str,
    names: list[str],
    from_caller: Mapping[str, str | int],
    from_format: Mapping[str, str | int],
    time_unit: str | None,
) -> dict[str, str | int]:
    """The column of each role in a log with a header.

    The caller's column comes before the format's column, and both before common names.

    Args:
      where: The file name, or a name for the frame; for error messages.
      names: The columns of the log.
      from_caller: The caller's column of each role.
      from_format: The format's column of each role.
      time_unit: A key of `TIME_UNITS`; "order" needs no timestamp column. None: not known yet.

    Raises:
      LogError: The log lacks a column that is required or that the caller names, or a column has
        two roles.
    """
    columns: dict[str, str | int] = {}
    requested = {**from_format, **from_caller}
    for role in ROLES:
        if role == "timestamp" and time_unit == "order":
            continue
        column = (
            detection.find_column(names, str(requested[role]))
            if role in requested
            else detection.guess_column(names, role)
        )
        if column is not None:
            columns[role] = column
        elif role in REQUIRED or role in from_caller:
            missing = f"{requested[role]!r} " if role in requested else ""
            hint = "; or set --time_unit=order if there are no times" if role == "timestamp" else ""
            raise LogError(
                where,
                f"no column {missing}for the {role} among {', '.join(names)}. Name it: "
                f"--columns={role}=COLUMN{hint}.",
            )
    check_distinct(where, columns, from_caller)
    return columns


def check_distinct(
    where: str, columns: Mapping[str, str | int], from_caller: Mapping[str, str | int]
) -> None:
    """Raises `LogError` if two roles have one column.

    A rating that nobody named may share its column, and a row too: times can number the rows.

    Args:
      where: The file name, or a name for the frame; for error messages.
      columns: The column of each role.
      from_caller: The caller's column of each role.
    """
    role_of: dict[str | int, str] = {}
    for role, column in columns.items():
        if role == "row" or (role not in REQUIRED and role not in from_caller):
            continue
        other = role_of.setdefault(column, role)
        if other != role:
            raise LogError(
                where,
                f"column {column!r} is both the {other} and the {role}. Name another column for "
                f"one of them: --columns={other}=COLUMN,{role}=COLUMN.",
            )
