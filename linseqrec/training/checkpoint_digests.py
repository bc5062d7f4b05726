"""Digests of a checkpoint's files, by which damage is found.

Orbax loads a file with a flipped byte without an error. A checkpoint is therefore *sealed*: the
digests of its files are written to `sha256/STEP.json`. It is *sound* if its files match them.
"""

import os
import shutil
from collections.abc import Collection
from pathlib import Path

from linseqrec.errors import FileError
from linseqrec.files import read_json, sha256_of_file, write_json

# The folder of a checkpoint whose step is saved again, until its successor is sealed.
REPLACED = "replaced"


def digests_path(folder: Path, step: int) -> Path:
    """The file of a checkpoint's digests.

    Args:
      folder: The folder of the checkpoints.
      step: The checkpoint.
    """
    return folder / "sha256" / f"{step}.json"


def seal(folder: Path, step: int, kept: Collection[int]) -> None:
    """Writes a checkpoint's digests; deletes `replaced/` and digests of deleted checkpoints.

    Args:
      folder: The folder of the checkpoints.
      step: The checkpoint, complete on disk.
      kept: The checkpoints whose digests stay.
    """
    path = digests_path(folder, step)
    path.parent.mkdir(exist_ok=True)
    write_json(path, _digests(folder / str(step)))
    names = {str(step) for step in kept}
    for other in path.parent.glob("*.json"):
        if other.stem not in names and not other.is_dir():
            other.unlink(missing_ok=True)
    shutil.rmtree(folder / REPLACED, ignore_errors=True)


def ever_sealed(folder: Path) -> bool:
    """Whether there are digests of any checkpoint.

    Args:
      folder: The folder of the checkpoints.
    """
    # A kill in `seal` can leave a file ".7.1234.partial.json".
    return any(path.stem.isdecimal() for path in (folder / "sha256").glob("*.json"))


def faults(folder: Path, step: int) -> list[str]:
    """A message for each file of a checkpoint that is missing or has changed.

    Also for its file of digests, if that is missing or damaged.

    Args:
      folder: The folder of the checkpoints.
      step: The checkpoint.
    """
    path = digests_path(folder, step)
    try:
        saved = read_json(path, {str: str})
    except FileError as error:
        return [str(error)]
    current = _digests(folder / str(step))
    return [
        f"{name} {'has changed' if name in current else 'is missing'}"
        for name, digest in saved.items()
        if current.get(name) != digest
    ] + [f"{name} is not in {path}" for name in current if name not in saved]


# ---------------------------------------------------------------- a checkpoint that is saved again
def move_to_replaced(folder: Path, step: int) -> None:
    """Moves a checkpoint to `replaced/`, so that another of the same step can be saved.

    Args:
      folder: The folder of the checkpoints.
      step: The checkpoint.
    """
    (folder / REPLACED).mkdir(exist_ok=True)
    os.replace(folder / str(step), folder / REPLACED / str(step))
    if os.path.lexists(path := digests_path(folder, step)):
        os.replace(path, folder / REPLACED / path.name)


def restore_replaced(folder: Path) -> None:
    """Puts a checkpoint in `replaced/` back if it has no sound successor, or else deletes it.

    A kill at any moment, in this function too, leaves what the next call needs.

    Args:
      folder: The folder of the checkpoints.
    """
    formers = [path for path in (folder / REPLACED).glob("*/") if path.name.isdecimal()]
    for former in formers:
        step, path = int(former.name), former.with_suffix(".json")
        if faults(folder, step):
            shutil.rmtree(folder / str(step), ignore_errors=True)
            if path.exists():
                os.replace(path, digests_path(folder, step))
            os.replace(former, folder / str(step))
    shutil.rmtree(folder / REPLACED, ignore_errors=True)


def _digests(folder: Path) -> dict[str, str]:
    """The sha256 of each file in a folder, by its path in the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_of_file(path) for path in files}
