"""SIGTERM while a training program starts, and when it has ended.

This module imports nothing heavy, so that `launch.train` can call it before its other imports,
which take seconds. While the run trains, `Preemption` handles the signal.
"""

import os
import signal
import sys
from types import FrameType


def exit_as_preempted() -> None:
    """Makes a SIGTERM end the process at once with code 75: run the same command again."""
    signal.signal(signal.SIGTERM, _exit)


def ignore() -> None:
    """Flushes the output and ignores SIGTERM from now on, because the exit code is known.

    Python removes its signal handlers while it ends, but keeps ignored signals ignored.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _exit(number: int, frame: FrameType | None) -> None:
    del number, frame
    os.write(2, b"preempted; run the same command again to continue\n")
    os._exit(os.EX_TEMPFAIL)
