"""TensorBoard's event files, written at once.

tensorboardX's `SummaryWriter` writes from a thread; once that thread has died of a full disk, its
queue fills and the run waits for it for ever.
"""

import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tensorboardX.summary import scalar


class TensorBoard:
    """An event file of scalars."""

    def __init__(self, folder: Path, first_step: int):
        """Opens a file of its own in a folder.

        Args:
          folder: Made if need be.
          first_step: TensorBoard drops what earlier files hold from this step on.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._file = EventsWriter(str(folder / "events"))
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(first_step, session_log=start)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one value a name, on disk when it returns.

        Raises:
          OSError: If it cannot be written.
        """
        for name, value in values.items():
            self._write(step, summary=scalar(name, value))
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, step: int, **what: object) -> None:
        self._file.write_event(event_pb2.Event(wall_time=time.time(), step=step, **what))
