"""Files: written atomically, and the digests of their contents."""

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import polars as pl

_BLOCK_BYTES = 1 << 22


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, and renames it to `path` when the body ends.

    A reader sees the old file or the complete new one. If the body raises, `path` stays unchanged
    and the temporary file is deleted.

    Args:
      path: The file to write. Its folder must exist.
    """
    partial = path.with_suffix(f".partial{path.suffix}")
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
        partial.write_text(json.dumps(_without_nan(value), indent=2, allow_nan=False) + "\n")


def _without_nan(value: Any) -> Any:
    # JSON has no NaN. Python writes one anyway, which other readers refuse.
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
