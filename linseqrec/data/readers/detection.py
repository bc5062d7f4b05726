"""The format of a log file, detected from its name and its first lines."""

import csv
import dataclasses
import json
import re
from collections.abc import Mapping

from linseqrec.data.readers.formats import COMMON_NAMES, FORMATS, MISSING, Format
from linseqrec.data.readers.raw_lines import Head
from linseqrec.data.readers.times import ISO
from linseqrec.errors import LogError

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_INTEGER = re.compile(r"\d+")
# A number, but no seconds since 1970: those belong to the next column.
_RATING = re.compile(rf"(?!\d{{9}}){_NUMBER.pattern}")
_ISO = re.compile(ISO)
_TYPED = re.compile(r"\w+:(token|token_seq|float|float_seq)")
_BEHAVIOUR = re.compile(r"pv|buy|cart|fav")
_AMAZON_USER = re.compile(r"A[0-9A-Z]{9,24}")
_AMAZON_ITEM = re.compile(r"B[0-9A-Z]{9}|[0-9]{9}[0-9X]")

# Formats without a header: the pattern of each field, None for any text.
_HEADERLESS: dict[str, tuple[re.Pattern[str] | None, ...]] = {
    "movielens-dat": (_INTEGER, _INTEGER, _RATING, _NUMBER),
    "movielens-tab": (_INTEGER, _INTEGER, _RATING, _NUMBER),
    "taobao": (_INTEGER, _INTEGER, _INTEGER, _BEHAVIOUR, _NUMBER),
    "checkins": (_INTEGER, _ISO, _NUMBER, _NUMBER, None),
    "amazon-csv": (_AMAZON_USER, _AMAZON_ITEM, _NUMBER, _NUMBER),
    "amazon-csv-item-first": (_AMAZON_ITEM, _AMAZON_USER, _NUMBER, _NUMBER),
}


def choose_format(
    head: Head, name: str | None, columns: Mapping[str, str | int], separator: str | None
) -> Format:
    """The named format, or the detected one.

    Args:
      head: The beginning of the file.
      name: A key of `FORMATS`. None: detect the format from the file.
      columns: The caller's column of each role. If it is not empty, the file may be any CSV or TSV
        file. If it has positions, the file has no header.
      separator: The text between two fields of a CSV file. None: detect it.

    Returns:
      The format. The separator, and the number of fields of a headerless CSV or TSV file, are those
      of the file.

    Raises:
      LogError: The format is unknown, cannot be detected, or is not the format of the file; or the
        separator is not possible.
    """
    if name is not None and name not in FORMATS:
        raise LogError(str(head.path), f"format={name!r} is unknown; known: {', '.join(FORMATS)}.")
    if separator is not None:
        _check_separator(head, name, separator)
    if head.parquet or name == "parquet":
        if not head.parquet or name not in (None, "parquet"):
            content = "Parquet" if head.parquet else "text"
            raise LogError(
                str(head.path),
                f"--format={name}, but the file is {content}. Leave --format out to detect it.",
            )
        return FORMATS["parquet"]
    headerless = any(isinstance(column, int) for column in columns.values())
    if separator is not None:
        log_format = _separated_by(separator)
    elif name == "csv":
        log_format = _separated_by(_find_separator(head, columns, ",;|") or ",")
    elif name is not None:
        log_format = FORMATS[name]
    else:
        log_format = _detect(head, columns, headerless)
    if log_format.kind == "text" and headerless:
        _check_all_positions(head, columns)
    if log_format.name in ("csv", "tsv") and headerless:
        rows = [split_fields(line, log_format) for line in head.lines]
        _check_no_header(head, rows, columns)
        return dataclasses.replace(log_format, num_fields=len(rows[0]))
    if log_format.name == "user-item":
        rows = [re.split("[ \t]", line) for line in head.lines]
        _check_no_header(head, rows, log_format.columns)
        if "\t" in head.lines[0]:
            return dataclasses.replace(log_format, separator="\t")
    return log_format


def _check_all_positions(head: Head, columns: Mapping[str, str | int]) -> None:
    """Refuses columns of which some are names and some are positions."""
    if any(isinstance(column, str) for column in columns.values()):
        given = ",".join(f"{role}={column}" for role, column in columns.items())
        raise LogError(
            str(head.path),
            f"--columns={given} mixes names and positions. If line 1 names the columns, type names "
            "only: --columns=user=NAME,item=NAME,... If it is an event, type positions only: "
            "--columns=user=0,item=1,...",
        )


def _check_no_header(head: Head, rows: list[list[str]], columns: Mapping[str, str | int]) -> None:
    """Refuses a first line of column names, which would be read as an event.

    Args:
      head: The beginning of the file.
      rows: The fields of its lines.
      columns: The position of each role.
    """
    first = rows[0]
    named = all(any(guess_column([field], role) for role in COMMON_NAMES) for field in first)
    # pandas numbers the columns of a table without names: "0,1,2".
    numbered = len(first) > 1 and first == [str(place) for place in range(len(first))]
    ids = {
        role: [row[place] for row in rows if place < len(row)]
        for role, place in columns.items()
        if role in ("user", "item") and isinstance(place, int) and place < len(first)
    }
    # A user may have the name "user", but then has more events.
    named_once = any(
        guess_column(values[:1], role) and values[0] not in values[1:]
        for role, values in ids.items()
    )
    above_numbers = bool(ids) and all(
        values[0] not in MISSING
        and not _NUMBER.fullmatch(values[0])
        and values[1:]
        and all(map(_NUMBER.fullmatch, values[1:]))
        for values in ids.values()
    )
    if named or numbered or named_once or above_numbers:
        raise LogError(
            str(head.path),
            f"line 1 looks like a header: {head.lines[0].rstrip()[:80]!r}. Name the columns by it "
            "(--columns=user=NAME,...), or remove the line. If it is an event, write a line of "
            "names above it.",
            line=1,
        )


def _check_separator(head: Head, name: str | None, separator: str) -> None:
    if head.parquet or name not in (None, "csv", "tsv"):
        raise LogError(
            str(head.path),
            f"--separator={separator!r} is for CSV files, but the format is {name or 'parquet'}. "
            "Leave --separator out.",
        )
    if not separator.isascii() or len(set(separator)) != 1 or separator[0] in '"\r\n\0':
        raise LogError(
            str(head.path),
            f"--separator={separator!r} must be one ASCII character, or one that is repeated, such "
            "as ::, and no quote or line end. Replace the separator in the file.",
        )


def _separated_by(separator: str) -> Format:
    """The format CSV or TSV with this separator."""
    if separator == "\t":
        return FORMATS["tsv"]
    # Only separators of one character can stand beside quotes.
    return dataclasses.replace(
        FORMATS["csv"], separator=separator, quoted=FORMATS["csv"].quoted and len(separator) == 1
    )


def _find_separator(head: Head, columns: Mapping[str, str | int], separators: str) -> str | None:
    """The first separator that gives the first line all columns.

    Args:
      head: The beginning of the file.
      columns: The caller's column of each role.
      separators: The separators to try, one character each.

    Returns:
      The separator. If none gives all columns, the first separator of the first line if the caller
      names columns, else None.
    """
    present = [separator for separator in separators if separator in head.lines[0]]
    for separator in present:
        names = split_fields(head.lines[0], _separated_by(separator))
        if all(_has_column(names, role, columns.get(role)) for role in {*columns, "user", "item"}):
            return separator
    return present[0] if columns and present else None


def _has_column(names: list[str], role: str, column: str | int | None) -> bool:
    if isinstance(column, int):
        return column < len(names)
    if column is None:
        return guess_column(names, role) is not None
    return find_column(names, column) is not None


def split_fields(line: str, log_format: Format) -> list[str]:
    """The fields of one line of a text format."""
    if log_format.quoted and '"' in line:
        try:
            return next(csv.reader([line], delimiter=log_format.separator))
        except csv.Error:
            pass  # The reader of all lines says what is wrong with this one.
    return line.split(log_format.separator)


def find_column(names: list[str], requested: str) -> str | None:
    """The column `requested`, or the only column `requested:type` in RecBole's notation.

    None if `names` has neither.
    """
    if requested in names:
        return requested
    typed = [name for name in names if name.split(":")[0] == requested and _TYPED.fullmatch(name)]
    return typed[0] if len(typed) == 1 else None


def guess_column(names: list[str], role: str) -> str | None:
    """The first column with a common name of the role (`COMMON_NAMES`), or None."""
    by_lower = {name.lower(): name for name in reversed(names)}
    return next((by_lower[name] for name in COMMON_NAMES[role] if name in by_lower), None)


def _detect(head: Head, columns: Mapping[str, str | int], headerless: bool) -> Format:
    first = head.lines[0]
    if first.startswith("{"):
        return _detect_json(head)
    if first.startswith("["):
        raise LogError(str(head.path), "this is a JSON array. Write one object per line.", line=1)
    if not headerless:
        detected = _detect_header(head, first) or _detect_headerless(head)
        if detected:
            return detected
    separator = _find_separator(head, columns, "\t,;|")
    if separator is not None:
        return _separated_by(separator)
    if len(re.split("[ \t]", first)) == 2 and not columns and "," not in first:
        return FORMATS["user-item"]
    raise LogError(
        str(head.path),
        f"cannot detect the format from the first line {first[:80]!r}. Set --format to one of "
        f"{', '.join(FORMATS)}, or name the columns: --columns=user=..,item=..,timestamp=... If "
        "fields are not between commas, tabs, semicolons or pipes, set --separator too.",
        line=1,
    )


def _detect_header(head: Head, first: str) -> Format | None:
    tabs = first.split("\t")
    if head.name.endswith(".inter") or (len(tabs) > 1 and all(map(_TYPED.fullmatch, tabs))):
        return FORMATS["recbole"]
    names = set(split_fields(first, FORMATS["csv"]))
    for name in ("movielens-csv", "amazon-2023-csv", "kuairand"):
        if set(FORMATS[name].columns.values()) <= names:
            return FORMATS[name]
    return None


def _detect_headerless(head: Head) -> Format | None:
    """The format whose field patterns match more than half of the first lines, or None.

    A later check refuses a damaged line with its number, so that such a line must not prevent the
    detection. No line matches the patterns of two formats.
    """
    for name, patterns in _HEADERLESS.items():
        if _matches_most(head.lines, name, patterns):
            return FORMATS[name]
    return None


def _matches_most(
    lines: list[str], name: str, patterns: tuple[re.Pattern[str] | None, ...]
) -> bool:
    matches = 0
    for line in lines:
        fields = line.split(FORMATS[name].separator)
        matches += len(fields) == len(patterns) and all(
            pattern is None or pattern.fullmatch(field) is not None
            for field, pattern in zip(fields, patterns, strict=True)
        )
    return 2 * matches > len(lines)


def json_keys(head: Head) -> list[str]:
    """The keys of all first lines of a JSON log, in the order in which they appear.

    Raises:
      LogError: The first line is not a JSON object.
    """
    keys: dict[str, None] = {}
    for line, text in enumerate(head.lines, start=1):
        reason = "."
        try:
            event = json.loads(text)
        except ValueError as error:
            event, reason = None, f": {error}."
        if isinstance(event, dict):
            keys |= dict.fromkeys(event)
        elif line == 1:  # `check_json` names a later line
            raise LogError(str(head.path), f"the line is not a JSON object{reason}", line=1)
    return list(keys)


def _detect_json(head: Head) -> Format:
    keys = set(json_keys(head))
    for name in ("amazon-json", "amazon-2023-json"):
        columns = FORMATS[name].columns
        if {columns[role] for role in ("user", "item", "timestamp")} <= keys:
            return FORMATS[name]
    return FORMATS["json"]


def is_iso(text: str) -> bool:
    """Whether a text begins like an ISO 8601 date, so that its log is not one of numbers."""
    return re.match(r"\d{4}-\d\d-\d\d", text) is not None
