"""The bytes of a log file: its beginning, its digest, and checks of every line."""

import codecs
import csv
import dataclasses
import gzip
import hashlib
import io
import itertools
import json
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

import numpy as np

from linseqrec.data.readers.formats import Format
from linseqrec.errors import LogError
from linseqrec.files import sha256_of_file

_BLOCK = 1 << 24  # bytes
_HEAD_BYTES, _HEAD_LINES = 1 << 20, 200
_GZIP_ERRORS = (EOFError, gzip.BadGzipFile, zlib.error)
# The first bytes of common files that the readers cannot read, with advice.
_UNREADABLE = {
    b"PK\x03\x04": "a ZIP archive. Unpack it",
    b"BZh": "compressed with bzip2. Unpack it, or use gzip",
    b"\xfd7zXZ": "compressed with xz. Unpack it, or use gzip",
    b"\x28\xb5\x2f\xfd": "compressed with zstd. Unpack it, or use gzip",
    b"\xff\xfe": "UTF-16 text. Convert it to UTF-8",
    b"\xfe\xff": "UTF-16 text. Convert it to UTF-8",
}


@dataclasses.dataclass(frozen=True)
class Head:
    """The beginning of a log file.

    Attributes:
      path: The file.
      name: The name of the file, without `.gz`.
      parquet: Whether it is a Parquet file; `lines` is then empty.
      lines: The first complete lines, without line ends.
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
    """Opens a file for reading its uncompressed bytes."""
    return cast(IO[bytes], gzip.open(path, "rb")) if is_gzip(path) else open(path, "rb")


def _skip_mark(file: IO[bytes]) -> None:
    """Moves a file that has just been opened past its byte-order mark, if it has one."""
    if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
        file.seek(0)


def parquet_files(path: Path) -> list[Path]:
    """The Parquet files of a folder in the order of their names; empty if `path` is a file.

    Raises:
      LogError: There are some in a folder within it, too.
    """
    if not os.path.isdir(path):
        return []
    files = sorted(path.glob("*.parquet"))
    below = [file for file in sorted(path.rglob("*.parquet")) if file.parent != path]
    if files and below:
        raise LogError(
            str(path),
            f"holds Parquet files, and so do folders within it, such as {below[0]}: put all into "
            "one folder, or move those that are not of the log.",
        )
    return files


def sha256_of_files(paths: list[Path]) -> str:
    """The SHA-256 of one file, or of a list of the digests and names of several files."""
    digests = [sha256_of_file(path) for path in paths]
    if len(paths) == 1:
        return digests[0]
    lines = (f"{digest}  {path.name}\n" for digest, path in zip(digests, paths, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_head(path: Path) -> Head:
    """The beginning of a log file.

    Raises:
      LogError: The file does not exist, is empty or damaged, or is not a log (HTML, ZIP, ...).
    """
    try:
        size = path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            reason = f"this is a link to {path.readlink()}, which does not exist."
        else:
            reason = "no such file."
        raise LogError(str(path), reason) from None
    except OSError as error:
        raise _unreadable_file(path, error) from None
    if path.is_dir():
        raise LogError(str(path), "the folder has no file *.parquet.")
    if not path.is_file():
        raise LogError(str(path), "is neither a file nor a folder of Parquet files.")
    if size == 0:
        raise LogError(str(path), "the file is empty.")
    try:
        with open_bytes(path) as file:
            data = file.read(_HEAD_BYTES)
    except _GZIP_ERRORS as error:
        raise _damaged_gzip(path, error) from None
    except OSError as error:
        raise _unreadable_file(path, error) from None
    name = path.name.removesuffix(".gz")
    if data.startswith(b"PAR1"):
        return Head(path, name, parquet=True, lines=[])
    for first_bytes, kind_and_advice in _UNREADABLE.items():
        if data.startswith(first_bytes):
            raise LogError(str(path), f"this is {kind_and_advice}.")
    _check_zeros(path, data, 1)
    text = data.removeprefix(codecs.BOM_UTF8).decode("utf-8", errors="replace")
    if not text.strip():
        raise LogError(str(path), "the file is empty.")
    if text.lstrip().startswith("<"):
        raise LogError(
            str(path),
            "this is HTML or XML, not a log. It may be the error page of a failed download: "
            "download the log again.",
            line=1,
        )
    if "\n" not in text and "\r" in text:
        raise LogError(
            str(path), "lines end with \\r alone. Convert it: tr '\\r' '\\n' < FILE > NEW."
        )
    lines = text.split("\n")
    if len(lines) > 1:
        # The last element is a line that the head cuts, or the empty text after the last line end.
        lines.pop()
    lines = [line.removesuffix("\r") for line in lines[:_HEAD_LINES]]
    return Head(path, name, parquet=False, lines=lines)


@dataclasses.dataclass(frozen=True)
class Shape:
    """The digest of a log file, and whether it has quotes.

    Attributes:
      sha256: Digest of the bytes on disk, compressed or not.
      quotes: Whether the file has a quote, in a format whose fields may be quoted.
    """

    sha256: str
    quotes: bool


def check_shape(path: Path, log_format: Format, num_fields: int) -> Shape:
    """The digest of a log file, after a check of its bytes and of the fields of each line.

    The function reads the file once, a block at a time, and counts separators in arrays of bytes.
    It parses the lines one by one only from the first block with quotes on.

    Args:
      path: The log, plain or gzip.
      log_format: The format of the log, of kind "text" or "json".
      num_fields: The number of fields of each line; ignored for JSON.

    Returns:
      The digest, and whether the engines must parse quotes.

    Raises:
      LogError: The file is damaged, is not UTF-8, or has a line with wrong quotes, a blank line, or
        a line with too few or too many fields. The message names the first such line.
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


def read_line(path: Path, line: int) -> str:
    """The first 100 characters of line number `line`, from 1."""
    with open_bytes(path) as file:
        content = next(itertools.islice(file, line - 1, line), b"")
    return content.decode("utf-8", errors="replace").rstrip("\r\n")[:100]


def check_json(path: Path, numbers: set[str], ids: set[str]) -> None:
    """Raises `LogError` at the first line of JSON that the engine cannot read.

    Args:
      path: The log, plain or gzip.
      numbers: The keys whose values must be numbers or null.
      ids: The keys whose values must not be objects or arrays.
    """
    with open_bytes(path) as file:
        for line, text in enumerate(file, start=1):
            try:
                event = json.loads(text, parse_constant=_refuse_constant)
            except ValueError as error:
                raise LogError(
                    str(path), f"the line is not a JSON object: {error}.", line=line
                ) from None
            if not isinstance(event, dict):
                raise LogError(str(path), "the line is not a JSON object.", line=line)
            for name in numbers & set(event):
                if not isinstance(event[name], int | float | None):
                    raise LogError(
                        str(path), f"{name} is {event[name]!r}: it must be a number.", line=line
                    )
            for name in ids & set(event):
                if isinstance(event[name], dict | list):
                    raise LogError(
                        str(path),
                        f"{name} is {json.dumps(event[name])}: an id must be text or a number. "
                        "Write one value of it as the id.",
                        line=line,
                    )


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def check_quotes(path: Path, separator: str) -> None:
    """Raises `LogError` at the first line with a quote inside an unquoted field."""
    separator = re.escape(separator)
    field = rf'("([^"]|"")*"|[^"{separator}]*)'
    proper = re.compile(f"{field}({separator}{field})*")
    with open_bytes(path) as file:
        _skip_mark(file)
        for line, text in enumerate(file, start=1):
            if b'"' in text and not proper.fullmatch(text.decode("utf-8").rstrip("\r\n")):
                raise LogError(
                    str(path),
                    "a quote is inside an unquoted field. Quote the whole field, and double the "
                    "quotes in it.",
                    line=line,
                )


def _whole_lines(path: Path) -> Iterator[bytes]:
    """Blocks of complete lines, without byte-order mark; each line ends with a line end."""
    incomplete = b""
    try:
        with open_bytes(path) as file:
            _skip_mark(file)
            while block := file.read(_BLOCK):
                block = incomplete + block
                end = block.rfind(b"\n") + 1
                incomplete = block[end:]
                if end:
                    yield block[:end]
    except _GZIP_ERRORS as error:
        raise _damaged_gzip(path, error) from None
    except OSError as error:
        raise _unreadable_file(path, error) from None
    if incomplete:
        yield incomplete + b"\n"


def _check_encoding(path: Path, block: bytes, line: int) -> None:
    _check_zeros(path, block, line)
    if block.isascii():
        return
    try:
        block.decode("utf-8")
    except UnicodeDecodeError as error:
        raise LogError(
            str(path),
            "the text is not UTF-8. Convert it: iconv -f ENCODING -t utf-8.",
            line=line + block.count(b"\n", 0, error.start),
        ) from None


def _check_zeros(path: Path, block: bytes, line: int) -> None:
    zero = block.find(b"\0")
    if zero >= 0:
        raise LogError(
            str(path),
            "the line has a zero byte. The file is damaged, or is not UTF-8: download it again, or "
            "convert it: iconv -f ENCODING -t utf-8.",
            line=line + block.count(b"\n", 0, zero),
        )


def _check_lines(
    path: Path, block: bytes, separator: bytes, separators: int | None, line: int
) -> int:
    """The number of lines in a block without quotes.

    Args:
      path: The log, for error messages.
      block: Complete lines.
      separator: The separator of two fields.
      separators: The number of separators that each line must have. None: do not count them.
      line: The number of the block's first line.

    Raises:
      LogError: A line is blank, or has too few or too many fields, or a part of a separator.
    """
    data = np.frombuffer(block, dtype=np.uint8)
    ends = np.flatnonzero(data == ord("\n"))
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts
    blank = lengths == 0
    blank |= (lengths == 1) & (data[starts] == ord("\r"))
    counts = np.zeros(len(ends), dtype=np.int64)
    broken = np.zeros(len(ends), dtype=bool)
    if separators is not None:
        # A separator is one byte, or one that is repeated: a run of it holds several separators.
        is_byte = data == separator[0]
        places = np.flatnonzero(is_byte)
        if len(separator) > 1:
            edges = np.flatnonzero(np.diff(is_byte, prepend=False, append=False))
            places, lengths_of_runs = edges[::2], np.diff(edges)[::2]
            line_of_run = np.searchsorted(ends, places)
            broken[line_of_run[lengths_of_runs % len(separator) != 0]] = True
            places = np.repeat(places, lengths_of_runs // len(separator))
        counts = np.diff(np.searchsorted(places, ends), prepend=0)
    wrong = np.flatnonzero(blank | broken | (counts != (separators or 0)))
    if len(wrong):
        first = int(wrong[0])
        if blank[first]:
            raise _blank_line(path, line + first)
        if counts[first] == (separators or 0):
            raise LogError(
                str(path),
                f"the line has {separator[:1].decode()!r} outside a separator "
                f"{separator.decode()!r}. Choose a separator that no field has.",
                line=line + first,
            )
        raise _wrong_fields(path, line + first, int(counts[first]) + 1, (separators or 0) + 1)
    return len(ends)


def _check_quoted(path: Path, block: bytes, separator: str, num_fields: int, line: int) -> int:
    """The number of lines in a block with quotes; arguments and errors as for `_check_lines`."""
    rows = csv.reader(
        io.StringIO(block.decode("utf-8"), newline=""), delimiter=separator, strict=True
    )
    num_rows = 0
    try:
        for row in rows:
            if rows.line_num != num_rows + 1:
                raise LogError(
                    str(path),
                    "a quoted field contains a line end. Write each event on one line.",
                    line=line + num_rows,
                )
            if not row:
                raise _blank_line(path, line + num_rows)
            if len(row) != num_fields:
                raise _wrong_fields(path, line + num_rows, len(row), num_fields)
            num_rows += 1
    except csv.Error as error:
        raise LogError(str(path), f"the quotes are wrong: {error}.", line=line + num_rows) from None
    return num_rows


def _blank_line(path: Path, line: int) -> LogError:
    return LogError(str(path), "the line is blank. Delete it.", line=line)


def _wrong_fields(path: Path, line: int, num_fields: int, expected: int) -> LogError:
    return LogError(
        str(path), f"the line has {num_fields} fields: it must have {expected}.", line=line
    )


def _unreadable_file(path: Path, error: OSError) -> LogError:
    return LogError(str(path), f"cannot be read: {error.strerror or error}.")


def _damaged_gzip(path: Path, error: Exception) -> LogError:
    return LogError(
        str(path), f"the gzip file is truncated or damaged ({error}). Download it again."
    )
