"""Several processes as one run: how they meet, what one does for all, and how they agree.

Every process runs the same program on its own devices. What is computed together is left to the
mesh (`linseqrec.sharding`); here is the rest: files that only the first process writes, and wishes
of any process (to stop, to save) that all must follow at the same step.
"""

import json
import os
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from linseqrec.errors import UserError

# By which JAX's own timeout comes after ours.
_SPARE_SECONDS = 60


class DistributedError(UserError, RuntimeError):
    """Processes that did not find each other, or one that failed and took the others along."""


def initialize(
    coordinator: str, process_count: int | None, process_id: int | None, *, timeout: int
) -> None:
    """Waits for all processes of the run; to be called before JAX is used.

    Args:
      coordinator: "host:port" of process 0, reachable by all; or "auto": address, count and id are
        those of the cluster that the process runs in (SLURM, Cloud TPU, Open MPI, ...).
      process_count: Processes of the run; None with "auto".
      process_id: Which of them this is, from 0; None with "auto".
      timeout: Seconds to wait for the others.

    A run never goes on with fewer: where they do not all come in time, the process says so and ends
    with code 1. JAX's own client would abort with a trace, which no `except` sees.

    Raises:
      DistributedError: If a part of the address is missing, no cluster is found, or the meeting
        fails before its time is over.
    """
    detected = coordinator == "auto"
    given = process_count is not None and process_id is not None
    if detected == given or (given and not 0 <= process_id < process_count):  # type: ignore[operator]
        raise DistributedError(
            f"coordinator {coordinator!r}, process count {process_count}, process id {process_id}: "
            "want an address with both numbers, ids from 0; or 'auto' with neither"
        )
    where = "in the cluster" if detected else f"at {coordinator}"
    failed = f"the processes of this run did not all meet {where}"
    advice = (
        "Are all of them started, with one --process_id each, and is the port free and reachable? "
        "--initialization_timeout waits longer"
    )
    expired = threading.Timer(timeout, _end, [f"{failed} within {timeout} s. {advice}"])
    expired.daemon = True
    expired.start()
    try:
        jax.distributed.initialize(
            None if detected else coordinator,
            process_count,
            process_id,
            initialization_timeout=timeout + _SPARE_SECONDS,
        )
    # JAX passes on what the cluster's detection and its own client raise, of no common class.
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DistributedError(f"{failed}: {reason}. {advice}") from error
    finally:
        expired.cancel()
    # A cluster may well have been asked for one process; whoever asked for more sees it here.
    print(
        f"process {jax.process_index()} of {jax.process_count()}, {jax.local_device_count()} of "
        f"{jax.device_count()} devices",
        file=sys.stderr,
        flush=True,
    )


def _end(message: str) -> None:
    print(f"error: {message}", file=sys.stderr, flush=True)
    os._exit(1)


def is_first() -> bool:
    """Whether this is the process that writes the run's files."""
    return jax.process_index() == 0


def on_first(action: Callable[[], Any]) -> Any:
    """Runs an action on the first process alone; all wait for it and learn its result.

    Args:
      action: Its result must be what JSON can hold.

    Raises:
      DistributedError: On the others, if it raised on the first, where its own error goes on.
    """
    if jax.process_count() == 1:
        return action()
    error, told = None, {}
    if is_first():
        try:
            told = {"result": action()}
        except Exception as raised:
            error, told = raised, {"error": str(raised)}
    told = _from_first(told)
    if error is not None:
        raise error
    if "error" in told:
        raise DistributedError(f"process 0 failed: {told['error']}")
    return told["result"]


def _from_first(value: Any) -> Any:
    """The first process's value, on all."""
    payload = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(payload.size)))
    payload = payload if is_first() else np.zeros(size, np.uint8)
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(payload)).tobytes())


class Agreement:
    """Turns what any process wishes into what all do, at the same step.

    With several processes an answer is that to the question before: it has been exchanged while the
    step ran, and nobody waits for it. A process alone agrees with itself at once.
    """

    def __init__(self, wishes: int):
        """Args: `wishes`, how many are put to each question."""
        self._asked: jax.Array | None = None
        self._wishes = wishes
        if jax.process_count() > 1:
            mesh = jax.make_mesh((jax.device_count(),), ("all",), axis_types=(AxisType.Auto,))
            self._sharding = NamedSharding(mesh, PartitionSpec("all"))
            everywhere = NamedSharding(mesh, PartitionSpec())
            self._any = jax.jit(lambda asked: asked.any(0), out_shardings=everywhere)

    def ask(self, wishes: Sequence[bool]) -> list[bool]:
        """What is agreed on. Every process asks at every step.

        Args:
          wishes: This process's.
        """
        if jax.process_count() == 1:
            return list(wishes)
        mine = np.tile(np.asarray(wishes, bool), (jax.local_device_count(), 1))
        before = self._asked
        self._asked = self._any(jax.make_array_from_process_local_data(self._sharding, mine))
        return [False] * self._wishes if before is None else np.asarray(before).tolist()

    def forget(self) -> None:
        """Leaves the last question unanswered: what all have just done settled it."""
        self._asked = None
