"""Preemption: after a SIGTERM or Ctrl-C a run saves and ends, and the next start continues it."""

import contextlib
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any, Self

import jax

# The exit code of a preempted run: EX_TEMPFAIL of sysexits.h, "run the same command again".
EXIT_CODE = 75


class Preempted(BaseException):
    """The run ends because of a SIGTERM or SIGINT (Ctrl-C).

    It is not an `Exception`, so that no library catches it as an error of its own.

    Attributes:
      step: The saved step; None if there was nothing to save.
    """

    def __init__(self, step: int | None = None):
        self.step = step
        super().__init__("preempted" if step is None else f"preempted: step {step} is saved")


class Preemption:
    """A context manager that turns a SIGTERM into `Preempted` when the training state is complete.

    A first SIGINT (Ctrl-C) does the same; a second one is a `KeyboardInterrupt`. After a SIGTERM a
    run ends in one of three ways. After a SIGINT only the first two apply:

    - Between steps: the training loop reads `requested`, and all processes of the run agree on the
      step to end at (`distributed.Agreement`).
    - At once, in code that runs under `interruptible`: reading data and evaluating may take long
      and do not change the training state.
    - After `grace` seconds, if neither happens before; no signal can interrupt a compilation, for
      example. The process then exits without saving. The next start continues from the last
      checkpoint and repeats the later steps exactly.

    Attributes:
      requested: Whether the process has received a SIGTERM or SIGINT.
    """

    def __init__(self, grace: float = 20.0):
        """Handles no signal before the context begins.

        Args:
          grace: Seconds from the SIGTERM to the exit without saving. Must be shorter than the
            cluster's time from SIGTERM to SIGKILL, which is usually at least 30 seconds.
        """
        self.requested = False
        self._grace = grace
        self._interruptible = False
        self._context_ended = threading.Event()
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Self:
        # Only the main thread may handle signals. In another one, they end the process as usual.
        if threading.current_thread() is threading.main_thread():
            # A shell lets programs in the background ignore SIGINT: they go on doing so.
            ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
            for number in (signal.SIGTERM, *[signal.SIGINT] * (not ignored)):
                before = signal.signal(number, self._request)
                self._undo.callback(signal.signal, number, before)
            self._undo.callback(setattr, sys, "unraisablehook", sys.unraisablehook)
            sys.unraisablehook = functools.partial(self._unraisable, sys.unraisablehook)
            self._undo.enter_context(self._countdown())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._context_ended.set()
        self._undo.close()

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """A context in which the signals raise `Preempted` at once.

        It has no effect if the run has several processes: the others would wait for this one, so
        they must all end at a step that they agree on.
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
        del frame
        self.requested = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._interruptible:
            raise Preempted

    def _unraisable(self, hook_before: Callable[[Any], object], dropped: Any) -> None:
        """Sends the signal again if Python dropped `Preempted`.

        Python drops what a signal handler raises in a callback of the garbage collector, which JAX
        has, or in a destructor.
        """
        if dropped.exc_type is Preempted:
            threading.Timer(0.01, self._send_again).start()
        else:
            hook_before(dropped)

    def _send_again(self) -> None:
        if not self._context_ended.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    @contextlib.contextmanager
    def _countdown(self) -> Iterator[None]:
        """A context in which the process exits `grace` seconds after a SIGTERM."""
        # Python calls `_request` only when the main thread runs Python code again. The pipe of
        # `set_wakeup_fd` gets the signal's number at once, so a thread can read it.
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
            if received[0] == signal.SIGTERM and not self._context_ended.wait(self._grace):
                print(
                    f"preempted, and the run could not save within {self._grace:g} s (--grace): "
                    "the same command continues from the last checkpoint",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(EXIT_CODE)
