"""Atomic replacement of files."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, and renames it to `path` when the body ends.

    A reader sees the old file or the new one, never a part of it. If the body raises, `path` stays
    unchanged and the temporary file is removed.

    Args:
      path: The file to write; its folder exists.
    """
    partial = path.with_suffix(f".partial{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
