"""What is raised about a log that cannot be trusted."""


class LogError(ValueError):
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
