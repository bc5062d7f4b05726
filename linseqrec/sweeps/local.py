"""Runs of a sweep on this machine, several at a time."""

import contextlib
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import FrameType

from linseqrec.errors import SweepError
from linseqrec.sweeps.task import Failure, Task, reason_of

# A training that gets SIGTERM saves first, within its `--grace`; after a longer time it is killed.
GRACE_SECONDS, _PATIENCE_SECONDS = 45, 60.0
# JAX reserves this fraction of a GPU's memory when it starts, by default .75. Runs on the same GPU
# divide .9 of it.
_MEMORY = "XLA_PYTHON_CLIENT_MEM_FRACTION"
_SHARED_MEMORY = 0.9
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)


class Interrupted(Exception):
    """A signal stopped the sweep, which has stopped its runs; `signal` is the signal."""

    def __init__(self, number: int):
        self.signal = signal.Signals(number)
        super().__init__(f"stopped by {self.signal.name}")


def run_local(
    tasks: Sequence[Task], *, parallel: int = 1, devices: Sequence[str] = ()
) -> list[Failure]:
    """Runs tasks, some at a time; a task that fails does not stop the others.

    Args:
      tasks: In the order in which they are started.
      parallel: How many run at a time.
      devices: One for each run at a time, by `CUDA_VISIBLE_DEVICES`; empty: every run sees all.
        Runs on the same GPU share its memory, unless `XLA_PYTHON_CLIENT_MEM_FRACTION` is set.

    Returns:
      The tasks that failed, in their order.

    Raises:
      SweepError: If there are fewer devices than runs at a time.
      Interrupted: On SIGINT, SIGTERM, SIGHUP, or SIGALRM, by which a caller limits the time. Every
        run has then got SIGTERM and ended.
    """
    if parallel < 1 or (devices and len(devices) < parallel):
        raise SweepError(
            f"{parallel} runs at a time on {len(devices) or 'any number of'} devices: give at "
            "least 1 at a time, and a device for each"
        )
    used: list[str | None] = list(devices[:parallel]) if devices else [None] * parallel
    free: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    for device in used:
        free.put(device)
    processes: list[subprocess.Popen[bytes]] = []
    stopping = threading.Event()

    def run(place: int, task: Task) -> Failure | None:
        device = free.get()
        try:
            print(f"[{place}/{len(tasks)}] {task.label}: started", flush=True)
            process = task.start(_variables(device, used))
            processes.append(process)
            if stopping.is_set():
                process.terminate()
            code = process.wait()
        except BrokenPipeError:
            raise  # Nobody reads what this program prints: it ends.
        except OSError as error:
            return Failure(task, str(error))
        finally:
            free.put(device)
        print(f"{task.label}: {reason_of(code) if code else 'finished'}", flush=True)
        return Failure(task, reason_of(code)) if code else None

    outcomes: list[Future[Failure | None]] = []
    with ThreadPoolExecutor(parallel) as pool, _first_signal_raised() as check:
        try:
            outcomes.extend(pool.submit(run, *each) for each in enumerate(tasks, start=1))
            while wait(outcomes, timeout=1).not_done:
                check()
            return [failure for outcome in outcomes if (failure := outcome.result())]
        finally:
            stopping.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.terminate()
            # A cancelled outcome never counts as done for `wait`.
            running = [outcome for outcome in outcomes if not outcome.cancelled()]
            wait(running, timeout=_PATIENCE_SECONDS)
            for process in processes:
                process.kill()


def _variables(device: str | None, used: Sequence[str | None]) -> dict[str, str]:
    """Environment variables of a run on `device`, one of the devices `used` at the same time."""
    variables = {} if device is None else {"CUDA_VISIBLE_DEVICES": device}
    sharers = used.count(device)
    if sharers > 1 and _MEMORY not in os.environ:
        variables[_MEMORY] = f"{_SHARED_MEMORY / sharers:.3f}"
    return variables


@contextlib.contextmanager
def _first_signal_raised() -> Iterator[Callable[[], None]]:
    """Raises the first signal as `Interrupted`, and ignores those that come while runs end.

    Yields a function that raises it again: Python drops what a signal's handler raises in a
    callback of the garbage collector, which JAX has.
    """
    received: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) == 1:
            raise Interrupted(number)

    def check() -> None:
        if received:
            raise Interrupted(received[0])

    # `nohup` has SIGHUP ignored, so that a logout stops nothing.
    ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()
    before = {number: signal.signal(number, interrupt) for number in {*_SIGNALS} - ignored}
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
