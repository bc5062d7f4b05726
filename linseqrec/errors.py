"""What a user can mend: programs print it in one line and end with code 1."""


class UserError(Exception):
    """An error whose message says what is wrong, and where it can what to do.

    Each part of the library has subclasses of its own, which are a `ValueError` or a `RuntimeError`
    as well.
    """


class LogError(UserError, ValueError):
    """A log that is refused: the message names the file, the line and the reason."""

    def __init__(self, where: str, reason: str, *, line: int | None = None, row: int | None = None):
        """Names the place and the reason.

        Args:
          where: The file, or what the frame is.
          reason: What is wrong, and what to do.
          line: The line in the file, from 1.
          row: The row of a frame, from 0.
        """
        place = f", line {line}" if line is not None else f", row {row}" if row is not None else ""
        super().__init__(f"{where}{place}: {reason}")


class ReportError(UserError, ValueError):
    """Runs that cannot be reported together, or at all."""


class SweepError(UserError, ValueError):
    """A sweep that cannot be planned or started as it was asked for."""
