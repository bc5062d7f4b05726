"""A log as one lazy frame of events, whatever file or frame it came in."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import narwhals as nw

from linseqrec.data.readers import detection, source
from linseqrec.data.readers.formats import FORMATS, ROLES, TIME_UNITS
from linseqrec.errors import LogError

REQUIRED = ("user", "item", "timestamp")


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
        """What stands behind the engine's refusal to read a log that has the right shape."""
        kind = FORMATS[self.format].kind if self.format in FORMATS else None
        if kind == "text":
            source.check_quotes(Path(self.where), FORMATS[self.format].separator)
        if kind == "json":
            numbers = {
                str(self.columns[role]) for role in ("timestamp", "rating") if role in self.columns
            }
            source.check_json(Path(self.where), numbers)
        return LogError(self.where, f"cannot be read: {str(error).splitlines()[0]}")


def check_arguments(where: str, columns: Mapping[str, str | int], time_unit: str | None) -> None:
    """Refuses roles and units that do not exist (`LogError`)."""
    unknown = set(columns) - set(ROLES)
    if unknown:
        raise LogError(where, f"unknown column roles {sorted(unknown)}; known: {', '.join(ROLES)}.")
    if time_unit is not None and time_unit not in TIME_UNITS:
        raise LogError(where, f"unknown time unit {time_unit!r}; known: {', '.join(TIME_UNITS)}.")


def find_columns(
    where: str,
    names: list[str],
    given: Mapping[str, str | int],
    usual: Mapping[str, str | int],
    time_unit: str | None,
) -> dict[str, str | int]:
    """Role to column: as the caller names it, or the dialect, else by common names."""
    found: dict[str, str | int] = {}
    wanted = {**usual, **given}
    for role in ROLES:
        if role == "timestamp" and time_unit == "order":
            continue
        column = (
            detection.find_column(names, str(wanted[role]))
            if role in wanted
            else detection.guess_column(names, role)
        )
        if column is not None:
            found[role] = column
        elif role in REQUIRED or role in given:
            called = f"{wanted[role]!r} for the {role}" if role in wanted else f"for the {role}"
            hint = "; a log without time needs time_unit=order" if role == "timestamp" else ""
            raise LogError(
                where,
                f"no column {called} among {', '.join(names)}. Name it: columns {role}=…{hint}.",
            )
    return found
