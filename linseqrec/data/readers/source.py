"""A log's bytes: refusing what is no log, and one pass that checks every line's shape."""

import csv
import dataclasses
import gzip
import hashlib
import io
import itertools
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

import numpy as np

from linseqrec.data.readers.formats import Format
from linseqrec.errors import LogError

_BLOCK = 1 << 24
_HEAD, _HEAD_LINES = 1 << 20, 200
_FOREIGN = {
    b"PK\x03\x04": "a ZIP archive; unpack it",
    b"BZh": "compressed with bzip2; unpack it, or use gzip",
    b"\xfd7zXZ": "compressed with xz; unpack it, or use gzip",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; unpack it, or use gzip",
    b"\xff\xfe": "UTF-16 text; write it as UTF-8",
    b"\xfe\xff": "UTF-16 text; write it as UTF-8",
}


@dataclasses.dataclass(frozen=True)
class Head:
    """The beginning of a log file.

    Attributes:
      path: The file.
      name: Its name, without `.gz`.
      parquet: It is a Parquet file; `lines` is empty then.
      lines: Its first complete lines, without line ends.
    """

    path: Path
    name: str
    parquet: bool
    lines: list[str]


def is_gzip(path: Path) -> bool:
    """Whether a file is gzip, by its first bytes."""
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


def open_bytes(path: Path) -> IO[bytes]:
    """Opens a plain or gzip file for reading what it holds."""
    return cast(IO[bytes], gzip.open(path, "rb")) if is_gzip(path) else open(path, "rb")


def parquet_files(path: Path) -> list[Path]:
    """The Parquet files of a folder in the order of their names; none where it is no folder."""
    return sorted(path.glob("*.parquet")) if path.is_dir() else []


def sha256_of_files(paths: list[Path]) -> str:
    """The digest of one file; of several, that of their digests and names, a line each."""
    digests = []
    for path in paths:
        with open(path, "rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    if len(paths) == 1:
        return digests[0]
    lines = (f"{digest}  {path.name}\n" for digest, path in zip(digests, paths, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_head(path: Path) -> Head:
    """Reads a log's beginning, refusing what cannot be a log (`LogError`)."""
    if not path.is_file():
        found = "is neither a file nor a folder of Parquet files." if path.exists() else None
        raise LogError(str(path), found or "no such file.")
    if path.stat().st_size == 0:
        raise LogError(str(path), "the file is empty.")
    try:
        with open_bytes(path) as file:
            data = file.read(_HEAD)
    except (EOFError, OSError, zlib.error) as error:
        raise _damaged_gzip(path, error) from None
    name = path.name.removesuffix(".gz")
    if data.startswith(b"PAR1"):
        return Head(path, name, parquet=True, lines=[])
    for magic, what in _FOREIGN.items():
        if data.startswith(magic):
            raise LogError(str(path), f"this is {what}.")
    text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", errors="replace")
    if not text.strip():
        raise LogError(str(path), "the file is empty.")
    if text.lstrip().startswith("<"):
        raise LogError(
            str(path),
            "this is HTML or XML, not a log (an error page saved by a download?).",
            line=1,
        )
    lines = text.split("\n")
    if len(lines) > 1:
        lines.pop()  # cut by the end of the head, or the nothing after the last line end
    lines = [line.removesuffix("\r") for line in lines[:_HEAD_LINES]]
    return Head(path, name, parquet=False, lines=lines)


@dataclasses.dataclass(frozen=True)
class Shape:
    """What one pass over a log's bytes found.

    Attributes:
      sha256: Of the file as it stands (compressed where it is).
      quotes: Some field stands in quotes.
    """

    sha256: str
    quotes: bool


def check_shape(path: Path, log_format: Format, num_fields: int) -> Shape:
    """Reads every byte once: gzip is whole, text is UTF-8, every line has its fields.

    Works a block at a time on arrays of bytes; only a file with quotes is parsed line by line.

    Args:
      path: The log, plain or gzip.
      log_format: Its dialect, text or JSON.
      num_fields: How many fields each line must have (text formats).

    Returns:
      The file's digest, and whether Polars must look for quotes.

    Raises:
      LogError: With the first line that is wrong.
    """
    sha256 = sha256_of_files([path])
    text = log_format.kind == "text"
    separators = num_fields - 1 if text else None
    quotes, line = False, 1
    for block in _whole_lines(path):
        _check_encoding(path, block, line)
        quotes = quotes or (log_format.quoted and b'"' in block)
        if quotes:
            line += _check_quoted(path, block, log_format.separator, num_fields, line)
        else:
            line += _check_lines(path, block, log_format.separator.encode(), separators, line)
    return Shape(sha256, quotes)


def read_line(path: Path, line: int, width: int = 100) -> str:
    """The beginning of one line of a file, by its number from 1."""
    with open_bytes(path) as file:
        found = next(itertools.islice(file, line - 1, line), b"")
    return found.decode("utf-8", errors="replace").rstrip("\r\n")[:width]


def check_json(path: Path, numbers: set[str]) -> None:
    """Parses line by line, to name the first that is no object or holds no number where due."""
    with open_bytes(path) as file:
        for line, text in enumerate(file, start=1):
            try:
                found = json.loads(text, parse_constant=_refuse_constant)
            except ValueError as error:
                raise LogError(str(path), f"no JSON object: {error}.", line=line) from None
            if not isinstance(found, dict):
                raise LogError(str(path), "no JSON object.", line=line)
            for name in numbers & set(found):
                if not isinstance(found[name], int | float | None):
                    raise LogError(str(path), f"{name} is no number: {found[name]!r}.", line=line)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def check_quotes(path: Path, separator: str) -> None:
    """Names the first line with a quote where none may stand."""
    field = rf'("([^"]|"")*"|[^"{separator}]*)'
    proper = re.compile(f"{field}({separator}{field})*")
    with open_bytes(path) as file:
        for line, text in enumerate(file, start=1):
            if b'"' in text and not proper.fullmatch(text.decode("utf-8").rstrip("\r\n")):
                raise LogError(str(path), "a quote stands inside an unquoted field.", line=line)


def _whole_lines(path: Path) -> Iterator[bytes]:
    """Blocks of complete lines; the last line end is supplied where the file has none."""
    rest = b""
    try:
        with open_bytes(path) as file:
            while block := file.read(_BLOCK):
                block = rest + block
                cut = block.rfind(b"\n") + 1
                rest = block[cut:]
                if cut:
                    yield block[:cut]
    except (EOFError, OSError, zlib.error) as error:
        raise _damaged_gzip(path, error) from None
    if rest:
        yield rest + b"\n"


def _check_encoding(path: Path, block: bytes, line: int) -> None:
    if block.isascii():
        return
    try:
        block.decode("utf-8")
    except UnicodeDecodeError as error:
        raise LogError(
            str(path),
            "the text is not UTF-8; convert it (iconv -t utf-8).",
            line=line + block.count(b"\n", 0, error.start),
        ) from None


def _check_lines(
    path: Path, block: bytes, separator: bytes, separators: int | None, line: int
) -> int:
    """Counts the separators of each line; returns the number of lines."""
    data = np.frombuffer(block, dtype=np.uint8)
    ends = np.flatnonzero(data == ord("\n"))
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts
    blank = lengths == 0
    blank |= (lengths == 1) & (data[starts] == ord("\r"))
    counts = np.zeros(len(ends), dtype=np.int64)
    if separators is not None:
        found = data == separator[0]
        for offset, character in enumerate(separator[1:], start=1):
            found[:-offset] &= data[offset:] == character
        counts = np.diff(np.searchsorted(np.flatnonzero(found), ends), prepend=0)
    wrong = np.flatnonzero(blank | (counts != (separators or 0)))
    if len(wrong):
        first = int(wrong[0])
        if blank[first]:
            raise LogError(str(path), "the line is blank.", line=line + first)
        raise _wrong_fields(path, line + first, int(counts[first]) + 1, (separators or 0) + 1)
    return len(ends)


def _check_quoted(path: Path, block: bytes, separator: str, num_fields: int, line: int) -> int:
    rows = csv.reader(
        io.StringIO(block.decode("utf-8"), newline=""), delimiter=separator, strict=True
    )
    count = 0
    try:
        for count, row in enumerate(rows, start=1):  # noqa: B007 (the count is what is returned)
            if rows.line_num != count:
                raise LogError(
                    str(path),
                    "a quoted field runs over the end of the line.",
                    line=line + count - 1,
                )
            if not row:
                raise LogError(str(path), "the line is blank.", line=line + count - 1)
            if len(row) != num_fields:
                raise _wrong_fields(path, line + count - 1, len(row), num_fields)
    except csv.Error as error:
        raise LogError(str(path), f"the quotes are wrong: {error}.", line=line + count) from None
    return count


def _wrong_fields(path: Path, line: int, found: int, expected: int) -> LogError:
    return LogError(str(path), f"{found} fields, expected {expected}.", line=line)


def _damaged_gzip(path: Path, error: Exception) -> LogError:
    return LogError(str(path), f"the gzip file is truncated or damaged ({error}). Fetch it again.")
