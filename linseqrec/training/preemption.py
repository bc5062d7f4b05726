"""Preemption: SIGTERM ends a run at a step that the next start goes on from."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Self

import jax

# EX_TEMPFAIL of sysexits.h: nothing is wrong, run the same command again.
EXIT_CODE = 75


class Preempted(BaseException):
    """The run was asked to end. Not an `Exception`: no library may take it for an error of its own.

    Attributes:
      step: The step that was saved; None where there was nothing to save.
    """

    def __init__(self, step: int | None = None):
        self.step = step
        super().__init__("preempted" if step is None else f"preempted: step {step} is saved")


class Preemption:
    """Turns SIGTERM into `Preempted`, where the training state is whole.

    Between steps the loop reads `requested`, and all processes of the run agree on the step to end
    at (`distributed.Agreement`); what may wait or last long without touching the state (data,
    evaluation) stands under `interruptible` and is left at once. Where neither comes in time,
    above all in a compilation, which no signal interrupts, the process ends after `grace` seconds
    all the same: the last checkpoint is on disk, and what came after it will be repeated exactly.

    Attributes:
      requested: Whether a SIGTERM has come.
    """

    def __init__(self, grace: float = 20.0):
        """Args: `grace` in seconds; clusters send SIGKILL 30 seconds after SIGTERM or later."""
        self.requested = False
        self._grace = grace
        self._interruptible = False
        self._left = threading.Event()
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Self:
        # Only the main thread may handle signals: elsewhere, as in a notebook, SIGTERM just kills.
        if threading.current_thread() is threading.main_thread():
            before = signal.signal(signal.SIGTERM, self._request)
            self._undo.callback(signal.signal, signal.SIGTERM, before)
            self._undo.enter_context(self._countdown())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._left.set()
        self._undo.close()

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Inside, a SIGTERM raises `Preempted` at once, unless the run has other processes.

        They would wait for this one: all end at a step that they agree on.
        """
        if jax.process_count() > 1:
            yield
            return
        self._interruptible = True
        try:
            if self.requested:
                raise Preempted
            yield
        finally:
            self._interruptible = False

    def _request(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.requested = True
        if self._interruptible:
            raise Preempted

    @contextlib.contextmanager
    def _countdown(self) -> Iterator[None]:
        # Python's handlers wait until the main thread is back in Python; this pipe is written to
        # when the signal comes.
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        watcher = threading.Thread(target=self._watch, args=(reader,), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            os.close(writer)
            watcher.join()
            os.close(reader)

    def _watch(self, reader: int) -> None:
        while received := os.read(reader, 1):
            if received[0] == signal.SIGTERM and not self._left.wait(self._grace):
                print(
                    "preempted, and no step ended in time: the last checkpoint stands",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(EXIT_CODE)
