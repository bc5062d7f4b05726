"""Which dialect a file is written in, told from its name and its first lines."""

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

# Dialects without a header: what each field of the first lines must look like.
_HEADERLESS: dict[str, tuple[re.Pattern[str] | None, ...]] = {
    "movielens-dat": (_INTEGER, _INTEGER, _NUMBER, _NUMBER),
    "movielens-tab": (_INTEGER, _INTEGER, _NUMBER, _NUMBER),
    "taobao": (_INTEGER, _INTEGER, _INTEGER, _BEHAVIOUR, _NUMBER),
    "checkins": (_INTEGER, _ISO, _NUMBER, _NUMBER, None),
    "amazon-csv": (_AMAZON_USER, _AMAZON_ITEM, _NUMBER, _NUMBER),
    "amazon-csv-item-first": (_AMAZON_ITEM, _AMAZON_USER, _NUMBER, _NUMBER),
}


def choose_format(head: Head, name: str | None, mapped: bool, headerless: bool) -> Format:
    """The named dialect, or the one the file is written in.

    Args:
      head: The file's beginning.
      name: A key of `FORMATS`, or None to tell by the file.
      mapped: The caller names columns, so that an unknown dialect may be a generic one.
      headerless: The caller names them by position.

    Returns:
      The dialect, with the file's own separator and field count where it leaves them open.

    Raises:
      LogError: The dialect is unknown, cannot be told, or is not what the file holds.
    """
    if name is not None and name not in FORMATS:
        raise LogError(str(head.path), f"unknown format {name!r}; known: {', '.join(FORMATS)}.")
    if head.parquet or name == "parquet":
        if not head.parquet or name not in (None, "parquet"):
            found = "Parquet" if head.parquet else "text"
            raise LogError(str(head.path), f"format {name!r} was asked for, but this is {found}.")
        return FORMATS["parquet"]
    chosen = FORMATS[name] if name else _detect(head, mapped, headerless)
    if chosen.kind == "text" and chosen.name in ("csv", "tsv") and headerless:
        fields = split_fields(head.lines[0], chosen)
        return dataclasses.replace(chosen, num_fields=len(fields))
    if chosen.name == "user-item" and "\t" in head.lines[0]:
        return dataclasses.replace(chosen, separator="\t")
    return chosen


def split_fields(line: str, log_format: Format) -> list[str]:
    """The fields of one line."""
    if log_format.quoted and '"' in line:
        return next(csv.reader([line], delimiter=log_format.separator))
    return line.split(log_format.separator)


def find_column(names: list[str], wanted: str) -> str | None:
    """The column called `wanted`, else the only one that is `wanted:type` as RecBole writes it."""
    if wanted in names:
        return wanted
    typed = [name for name in names if name.split(":")[0] == wanted and _TYPED.fullmatch(name)]
    return typed[0] if len(typed) == 1 else None


def guess_column(names: list[str], role: str) -> str | None:
    """The column that commonly plays a role, by `COMMON_NAMES`."""
    by_lower = {name.lower(): name for name in reversed(names)}
    return next((by_lower[name] for name in COMMON_NAMES[role] if name in by_lower), None)


def _detect(head: Head, mapped: bool, headerless: bool) -> Format:
    first = head.lines[0]
    if first.startswith("{"):
        return _detect_json(head)
    if first.startswith("["):
        raise LogError(str(head.path), "a JSON array; write one object a line instead.", line=1)
    if not headerless:
        found = _detect_header(head, first) or _detect_headerless(head)
        if found:
            return found
    for separator, name in (("\t", "tsv"), (",", "csv")):
        if separator in first:
            names = split_fields(first, FORMATS[name])
            if mapped or (guess_column(names, "user") and guess_column(names, "item")):
                return FORMATS[name]
    if len(re.split("[ \t]", first)) == 2 and not mapped and "," not in first:
        return FORMATS["user-item"]
    raise LogError(
        str(head.path),
        f"cannot tell the format from the first line {first[:80]!r}. Name it (--format=…; known: "
        f"{', '.join(FORMATS)}), or name the columns (--columns=user=…,item=…,timestamp=…).",
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
    """The dialect whose field patterns fit most of the first lines (no two fit one line).

    Most, not all: a damaged line among them is to be refused by its number later, not to hide
    what the file is.
    """
    for name, patterns in _HEADERLESS.items():
        if _fits_most(head.lines, name, patterns):
            return FORMATS[name]
    return None


def _fits_most(lines: list[str], name: str, patterns: tuple[re.Pattern[str] | None, ...]) -> bool:
    fitting = 0
    for line in lines:
        fields = line.split(FORMATS[name].separator)
        fitting += len(fields) == len(patterns) and all(
            pattern is None or pattern.fullmatch(field) is not None
            for field, pattern in zip(fields, patterns, strict=True)
        )
    return 2 * fitting > len(lines)


def _detect_json(head: Head) -> Format:
    try:
        keys = set(json.loads(head.lines[0]))
    except ValueError as error:
        raise LogError(str(head.path), f"no JSON object: {error}.", line=1) from None
    for name in ("amazon-json", "amazon-2023-json"):
        columns = FORMATS[name].columns
        if {columns[role] for role in ("user", "item", "timestamp")} <= keys:
            return FORMATS[name]
    return FORMATS["json"]


def is_iso(text: str) -> bool:
    """Whether a text is a date and time as ISO 8601 writes them (no offset but Z)."""
    return _ISO.fullmatch(text) is not None
