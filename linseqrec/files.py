"""Writing a file atomically."""

import contextlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


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
