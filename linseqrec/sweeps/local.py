"""Runs on this machine: worker processes, each with one run at a time."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from types import FrameType

from linseqrec.errors import SweepError
from linseqrec.sweeps.task import Failure, Task, reason_of

_POLL_SECONDS = 0.1
# An interrupted training saves first, within its `--grace`; after this it is killed.
_PATIENCE_SECONDS = 60.0
# JAX reserves this fraction of a GPU's memory when it starts, by default .75. Runs on the same GPU
# divide .9 of it.
_MEMORY = "XLA_PYTHON_CLIENT_MEM_FRACTION"
_SHARED_MEMORY = 0.9
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):
    """The sweep was told to stop, and has stopped its runs; `signal` says by what."""

    def __init__(self, number: int):
        self.signal = signal.Signals(number)
        super().__init__(f"stopped by {self.signal.name}")


def run_local(
    tasks: Sequence[Task], *, parallel: int = 1, devices: Sequence[str] = ()
) -> list[Failure]:
    """Runs tasks, some at a time; one that fails does not stop the others.

    Args:
      tasks: In the order in which they are started.
      parallel: How many at a time.
      devices: One for each of them, by `CUDA_VISIBLE_DEVICES`; empty: all share all. Runs on the
        same GPU share its memory, unless `XLA_PYTHON_CLIENT_MEM_FRACTION` is set.

    Returns:
      Those that failed.

    Raises:
      SweepError: If there are fewer devices than tasks at a time.
      Interrupted: On SIGINT, SIGTERM or SIGHUP, when every process has ended: each got SIGTERM.
    """
    if parallel < 1 or (devices and len(devices) < parallel):
        raise SweepError(
            f"{parallel} runs at a time on {len(devices) or 'any number of'} devices: give at "
            "least 1 at a time, and a device for each"
        )
    used = list(devices[:parallel]) if devices else [None] * parallel
    free, waiting = list(used), list(tasks)
    running: dict[Task, tuple[subprocess.Popen[bytes], str | None]] = {}
    failures: list[Failure] = []
    with _noted_signals() as received:
        try:
            while (waiting or running) and not received:
                while waiting and free:
                    task, device = waiting.pop(0), free.pop(0)
                    place = len(tasks) - len(waiting)
                    print(f"[{place}/{len(tasks)}] {task.folder.name}: started", flush=True)
                    try:
                        running[task] = task.start(_variables(device, used)), device
                    except OSError as error:
                        failures.append(Failure(task, str(error)))
                        free.append(device)
                time.sleep(_POLL_SECONDS)
                for task, (process, device) in list(running.items()):
                    if (code := process.poll()) is not None:
                        del running[task]
                        free.append(device)
                        if code:
                            failures.append(Failure(task, reason_of(code)))
                        outcome = reason_of(code) if code else "finished"
                        print(f"{task.folder.name}: {outcome}", flush=True)
        finally:
            _stop([process for process, _ in running.values()])
        if received:
            raise Interrupted(received[0])
    return failures


def _variables(device: str | None, used: Sequence[str | None]) -> dict[str, str]:
    """Environment variables of a run on `device`, one of the devices `used` at the same time."""
    variables = {} if device is None else {"CUDA_VISIBLE_DEVICES": device}
    sharers = used.count(device)
    if sharers > 1 and _MEMORY not in os.environ:
        variables[_MEMORY] = f"{_SHARED_MEMORY / sharers:.3f}"
    return variables


@contextlib.contextmanager
def _noted_signals() -> Iterator[list[int]]:
    """Signals to stop are noted in the list, and end nothing half done."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + _PATIENCE_SECONDS
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
