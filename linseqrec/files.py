"""Writing a file atomically."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


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
