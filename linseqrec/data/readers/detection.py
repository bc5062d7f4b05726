"""The format of a log file, detected from its name and its first lines."""

import csv
import dataclasses
import json
import re

from linseqrec.data.readers.formats import COMMON_NAMES, FORMATS, Format
from linseqrec.data.readers.source import Head
from linseqrec.errors import LogError

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_INTEGER = re.compile(r"\d+")
_ISO = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?Z?")
_TYPED = re.compile(r"\w+:(token|token_seq|float|float_seq)")
_BEHAVIOUR = re.compile(r"pv|buy|cart|fav")
_AMAZON_USER = re.compile(r"A[0-9A-Z]{9,24}")
_AMAZON_ITEM = re.compile(r"B[0-9A-Z]{9}|[0-9]{9}[0-9X]")

# Formats without a header: the pattern of each field, None for any text.
_HEADERLESS: dict[str, tuple[re.Pattern[str] | None, ...]] = {
    "movielens-dat": (_INTEGER, _INTEGER, _NUMBER, _NUMBER),
    "movielens-tab": (_INTEGER, _INTEGER, _NUMBER, _NUMBER),
    "taobao": (_INTEGER, _INTEGER, _INTEGER, _BEHAVIOUR, _NUMBER),
    "checkins": (_INTEGER, _ISO, _NUMBER, _NUMBER, None),
    "amazon-csv": (_AMAZON_USER, _AMAZON_ITEM, _NUMBER, _NUMBER),
    "amazon-csv-item-first": (_AMAZON_ITEM, _AMAZON_USER, _NUMBER, _NUMBER),
}


def choose_format(head: Head, name: str | None, mapped: bool, headerless: bool) -> Format:
    """The named format, or the detected one.

    Args:
      head: The beginning of the file.
      name: A key of `FORMATS`. None: detect the format from the file.
      mapped: Whether the caller names columns. The file may then be any CSV or TSV file.
      headerless: Whether the caller names columns by position. The file then has no header.

    Returns:
      The format. The number of fields of a headerless CSV or TSV file, and the separator of
      "user-item", are those of the file.

    Raises:
      LogError: The format is unknown, cannot be detected, or is not the format of the file.
    """
    if name is not None and name not in FORMATS:
        raise LogError(str(head.path), f"format={name!r} is unknown; known: {', '.join(FORMATS)}.")
    if head.parquet or name == "parquet":
        if not head.parquet or name not in (None, "parquet"):
            content = "Parquet" if head.parquet else "text"
            raise LogError(
                str(head.path),
                f"format={name!r}, but the file is {content}. Leave the format out to detect it.",
            )
        return FORMATS["parquet"]
    log_format = FORMATS[name] if name else _detect(head, mapped, headerless)
    if log_format.kind == "text" and log_format.name in ("csv", "tsv") and headerless:
        fields = split_fields(head.lines[0], log_format)
        return dataclasses.replace(log_format, num_fields=len(fields))
    if log_format.name == "user-item" and "\t" in head.lines[0]:
        return dataclasses.replace(log_format, separator="\t")
    return log_format


def split_fields(line: str, log_format: Format) -> list[str]:
    """The fields of one line of a text format."""
    if log_format.quoted and '"' in line:
        return next(csv.reader([line], delimiter=log_format.separator))
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


def _detect(head: Head, mapped: bool, headerless: bool) -> Format:
    first = head.lines[0]
    if first.startswith("{"):
        return _detect_json(head)
    if first.startswith("["):
        raise LogError(str(head.path), "this is a JSON array. Write one object per line.", line=1)
    if not headerless:
        detected = _detect_header(head, first) or _detect_headerless(head)
        if detected:
            return detected
    for separator, name in (("\t", "tsv"), (",", "csv")):
        if separator in first:
            names = split_fields(first, FORMATS[name])
            if mapped or (guess_column(names, "user") and guess_column(names, "item")):
                return FORMATS[name]
    if len(re.split("[ \t]", first)) == 2 and not mapped and "," not in first:
        return FORMATS["user-item"]
    raise LogError(
        str(head.path),
        f"cannot detect the format from the first line {first[:80]!r}. Set --format to one of "
        f"{', '.join(FORMATS)}, or name the columns: --columns=user=..,item=..,timestamp=...",
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


def _detect_json(head: Head) -> Format:
    try:
        keys = set(json.loads(head.lines[0]))
    except ValueError as error:
        raise LogError(str(head.path), f"the line is not a JSON object: {error}.", line=1) from None
    for name in ("amazon-json", "amazon-2023-json"):
        columns = FORMATS[name].columns
        if {columns[role] for role in ("user", "item", "timestamp")} <= keys:
            return FORMATS[name]
    return FORMATS["json"]


def is_iso(text: str) -> bool:
    """Whether a text is an ISO 8601 date and time without offset, or with the offset Z."""
    return _ISO.fullmatch(text) is not None
