"""Writes files atomically, names damage when it reads files, and computes digests."""

import contextlib
import hashlib
import json
import math
import os
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from linseqrec.errors import FileError

if TYPE_CHECKING:
    import polars as pl

_BLOCK_BYTES = 1 << 22


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, and renames it to `path` when the body ends.

    A reader sees the old file or the complete new one, also if several processes write it. If the
    body raises, `path` stays unchanged and the temporary file is deleted.

    Args:
      path: The file to write. Its folder must exist.
    """
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Replaces a file by JSON; numbers that are not finite become null.

    Args:
      path: The file to write; its folder exists.
      value: What `json` can write.
    """
    with replacing(path) as partial:
        partial.write_text(json.dumps(without_nan(value), indent=2, allow_nan=False) + "\n")


def without_nan(value: Any) -> Any:
    """A value for JSON, with None for each number that is not finite, and lists for tuples."""
    # JSON has no NaN. Python writes one anyway, which other readers refuse.
    if isinstance(value, dict):
        return {key: without_nan(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path, form: Any = object) -> Any:
    """The content of a JSON file, checked.

    Args:
      path: The file.
      form: What it must hold, as `check_form` takes it.

    Raises:
      FileError: The file cannot be read, is no JSON, or holds something else.
    """
    try:
        value = parse_json(path.read_bytes())
        check_form(value, form)
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise FileError(f"{path} is damaged: {error}") from error
    return value


def read_records(path: Path) -> Iterator[dict[str, float]]:
    """The records of a file of metrics, in order, as `read_json_lines` reads them."""
    return read_json_lines(path, {"step": int, str: float})


def read_json_lines(path: Path, form: Any) -> Iterator[Any]:
    """The values of a JSON-lines file, in order; none if there is no file.

    Leaves out an incomplete last line, which a killed process may have written. Leaves out damaged
    lines and prints how many there are: records only inform, so they stop no program.
    """
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return
    except OSError as error:
        print(f"{path} cannot be read: {error.strerror}", file=sys.stderr)
        return
    damaged = []
    for number, line in enumerate(lines, start=1):
        try:
            record = parse_json(line)
            check_form(record, form)
        except ValueError as error:
            if line.endswith(b"\n") or b"\0" in line:
                damaged.append(f"line {number}: {error}")
            continue
        if line.endswith(b"\n"):
            yield record
    if damaged:
        print(
            f"{path}: {len(damaged)} of {len(lines)} lines are damaged and left out; {damaged[0]}",
            file=sys.stderr,
        )


def parse_json(text: bytes) -> Any:
    """The value of a JSON text. NaN is a number here, because `json` writes it.

    Raises:
      ValueError: The text is not UTF-8, is no JSON, or nests too deeply.
    """
    if not text.strip(b"\0 \t\r\n"):
        raise ValueError("it is empty" if not text else "it holds only zeros or spaces")
    try:
        return json.loads(text.decode())
    except RecursionError:
        raise ValueError("its values nest too deeply") from None


def check_form(value: Any, form: Any, where: str = "") -> None:
    """Refuses a value of JSON that does not have a form.

    Args:
      value: The value.
      form: A type; `float` admits whole numbers, and neither `int` nor `float` admits a bool. A
        tuple of forms, of which one must hold. `[form]` for a list. `{"name": form, ...}` for an
        object that has at least these names; a key `str` has the form of the other names.
      where: The value's place in the file, for the error.

    Raises:
      ValueError: The value has another form; names its place.
    """
    if isinstance(form, tuple):
        if any(_has_form(value, each) for each in form):
            return
        form = form[0]
    if isinstance(form, type):
        kinds: tuple[type, ...] = (int, float) if form is float else (form,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and form in (int, float)):
            raise ValueError(f"{where or 'it'} is {_shown(value)}, not {_NAMES[form]}")
        if form is int and isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ValueError(f"{where or 'it'} is {_shown(value)}, beyond 64 bits")
    elif isinstance(form, list):
        check_form(value, list, where)
        for index, each in enumerate(value):
            check_form(each, form[0], f"{where}[{index}]")
    else:
        check_form(value, dict, where)
        inside = f"{where}." if where else ""
        for name in form:
            if name is not str and name not in value:
                raise ValueError(f"it has no {inside}{name}")
        for name, part in value.items():
            check_form(part, form.get(name, form.get(str, object)), f"{inside}{name}")


_NAMES = {
    bool: "true or false",
    dict: "an object",
    float: "a number",
    int: "a whole number",
    list: "a list",
    str: "text",
    type(None): "null",
}


def _has_form(value: Any, form: Any) -> bool:
    try:
        check_form(value, form)
    except ValueError:
        return False
    return True


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return _NAMES[type(value)]
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file. Python objects are refused: reading them can run code.

    Raises:
      FileError: The file cannot be read or is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("it is no .npz file")
            return {name: file[name] for name in file.files}
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror or error}") from error
    # What `zipfile`, `zlib` and NumPy raise for a damaged file.
    except (
        ValueError,
        EOFError,
        KeyError,
        MemoryError,
        NotImplementedError,
        RuntimeError,
        SyntaxError,
        TypeError,
        AttributeError,
        struct.error,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        reason = str(error).strip("'\"") or type(error).__name__
        raise FileError(f"{path} is damaged: {reason}") from error


def sha256_of_json(value: Any) -> str:
    """The SHA-256 of a JSON value, whatever the order of its names and its spaces."""
    text = json.dumps(without_nan(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_of_array(array: np.ndarray) -> str:
    """The SHA-256 of an array's elements: little-endian, in C order, without header or dtype."""
    digest = hashlib.sha256()
    flat = array.reshape(-1)
    step = max(1, _BLOCK_BYTES // array.itemsize)
    for begin in range(0, len(flat), step):
        block = flat[begin : begin + step]
        digest.update(np.ascontiguousarray(block, dtype=block.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def sha256_of_texts(texts: "pl.Series") -> str:
    """The SHA-256 of a list of texts.

    The digest covers the lengths in bytes as little-endian int64, then the UTF-8 of all texts.
    Without the lengths, ["ab", "c"] and ["a", "bc"] would have the same digest.
    """
    lengths = texts.str.len_bytes().to_numpy().astype("<i8")
    return hashlib.sha256(lengths.tobytes() + "".join(texts).encode()).hexdigest()


def sha256_of_file(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, as `sha256sum` prints it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
