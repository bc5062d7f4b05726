"""Lists the files that run between a flag and the first parameter update, in order of first use.

    PYTHONPATH=. python docs/reading_path.py --config=experiments/quick.py

Takes the flags of `launch.train`; the workdir is a temporary folder. A file counts when one of its
functions runs, or when it makes the experiment: what is only imported is not read.
"""

import inspect
import pathlib
import sys
import tempfile
import threading
from types import FrameType
from typing import Any

from launch import train
from launch.program import run_program
from linseqrec.training.loop import Schedule

ROOT = pathlib.Path(__file__).parents[1]
FOLDERS = [ROOT / name for name in ("experiments", "launch", "linseqrec")]


class Updated(BaseException):
    """The first update is done."""


def main() -> None:
    """Trains one step, and prints the files."""
    functions: dict[pathlib.Path, dict[str, None]] = {}

    def note(frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        path = pathlib.Path(code.co_filename).absolute()
        if event != "call" or not any(path.is_relative_to(folder) for folder in FOLDERS):
            return
        # Bodies of modules and classes run at import. A reader needs that of the experiment alone.
        if not code.co_flags & inspect.CO_OPTIMIZED and path.parent.name != "experiments":
            return
        functions.setdefault(path.relative_to(ROOT), {}).setdefault(code.co_name)
        if code is Schedule.after_step.__code__:
            raise Updated

    with tempfile.TemporaryDirectory() as workdir:
        sys.argv.append(f"--workdir={workdir}")
        threading.setprofile(note)
        sys.setprofile(note)
        try:
            run_program(train.main)
        except Updated:
            pass
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
    lines = 0
    for path, names in functions.items():
        lines += len((ROOT / path).read_text().splitlines())
        named = [name for name in names if not name.startswith("<")]
        print(f"{path}: {', '.join(named[:4])}{', ...' if len(named) > 4 else ''}")
    print(f"{len(functions)} files, {lines} lines")


if __name__ == "__main__":
    main()
