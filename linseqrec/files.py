"""Files that no reader ever sees half written."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a path to write to beside `path`, and moves the file there in one step at the end.

    Where the body fails, `path` stays as it was, and what was written is removed.

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
