"""Errors that a user can fix, and words for them.

Programs print such an error in one line, and exit with code 1.
"""

from typing import Any


class UserError(Exception):
    """Base class of errors whose message tells the user what is wrong and how to fix it.

    Each part of the library defines subclasses, which also derive from `ValueError` or
    `RuntimeError`.
    """


class LogError(UserError, ValueError):
    """A log is wrong or cannot be read. The message names the file, the line and the reason."""

    def __init__(self, where: str, reason: str, *, line: int | None = None, row: int | None = None):
        """Builds the message "WHERE, line LINE: REASON".

        Args:
          where: The file name, or a name for the frame.
          reason: What is wrong, and what to do.
          line: Line number in the file, from 1.
          row: Row number in the frame, from 0.
        """
        place = f", line {line}" if line is not None else f", row {row}" if row is not None else ""
        super().__init__(f"{where}{place}: {reason}")


class FileError(UserError, ValueError):
    """A file cannot be read, or does not hold what it should. The message begins with its path."""


class WorkdirError(UserError, RuntimeError):
    """A folder is not a run's workdir, or the run in it does not fit the call."""


class RunsError(UserError, ValueError):
    """Finished runs that cannot be opened, or cannot be compared."""


class SweepError(UserError, ValueError):
    """A sweep cannot be planned or started with these arguments."""


def first_ten(names: Any) -> str:
    """The first ten of a sequence or array, and how many others there are: "a, b and 3 more"."""
    others = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(map(str, names[:10])) + others


def first_line(error: BaseException) -> str:
    """The first line of an error's message, shortened, or its class's name if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
