"""Runs with several processes: connecting them, actions of one process, and common decisions.

Every process runs the same program on its own devices. The mesh (`linseqrec.sharding`) divides the
computation between them. This module does the rest: process 0 writes the files for all, and if any
process has to stop or to save, all do so at the same step.
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

from linseqrec.errors import UserError, first_line

# JAX's timeout is this much longer than ours, so that the user sees our error.
_EXTRA_SECONDS = 60


class DistributedError(UserError, RuntimeError):
    """The processes of a run could not connect, or one of them failed."""


def initialize(
    coordinator: str | None,
    process_count: int | None,
    process_id: int | None,
    *,
    detect: bool = False,
    timeout: int,
) -> None:
    """Connects this process with the others of the run. Call it before any other use of JAX.

    If not all processes connect in time, this process prints an error and exits with code 1; a run
    never starts with fewer processes. JAX's own client would abort the process with a stack trace
    instead of raising an exception.

    Args:
      coordinator: "host:port" of process 0, which all processes can reach; None with `detect`.
      process_count: Number of processes of the run; None with `detect`.
      process_id: Number of this process, from 0; None with `detect`.
      detect: Whether JAX reads all three from the cluster (SLURM, Cloud TPU, Open MPI, ...).
      timeout: Seconds to wait for the other processes.

    Raises:
      DistributedError: The arguments do not fit together, JAX finds no cluster, or the connection
        fails before the timeout.
    """
    given = {"coordinator": coordinator, "process_count": process_count, "process_id": process_id}
    flags = [f"--{name}={value}" for name, value in given.items() if value is not None]
    if detect:
        fits = not flags
        flags = ["--distributed=auto", *flags]
    else:
        fits = coordinator is not None and process_id in range(process_count or 0)
    if not fits:
        raise DistributedError(
            f"{' '.join(flags)}: the processes of a run need --coordinator=HOST:PORT with both "
            "numbers, --process_count and --process_id (ids count from 0), or --distributed=auto "
            "alone"
        )
    place = "in the cluster" if detect else f"at {coordinator}"
    problem = f"the processes of this run did not all connect {place}"
    advice = (
        "Check that each process has started with its own --process_id, and that the port is free "
        "and reachable. To wait longer, set --initialization_timeout"
    )
    timer = threading.Timer(timeout, _exit_with_error, [f"{problem} within {timeout} s. {advice}"])
    timer.daemon = True
    timer.start()
    # JAX's preemption service would take SIGTERM over from `Preemption`, and only log it.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator,
            process_count,
            process_id,
            initialization_timeout=timeout + _EXTRA_SECONDS,
        )
    # JAX passes on the errors of the cluster's detection and of its client: no common class.
    except Exception as error:
        raise DistributedError(f"{problem}: {first_line(error)}. {advice}") from error
    finally:
        timer.cancel()
    # A cluster job with one process is no error. The user sees here if there should be more.
    print(
        f"process {jax.process_index()} of {jax.process_count()}, {jax.local_device_count()} of "
        f"{jax.device_count()} devices",
        file=sys.stderr,
        flush=True,
    )


def _exit_with_error(message: str) -> None:
    print(f"error: {message}", file=sys.stderr, flush=True)
    os._exit(1)


def is_first() -> bool:
    """Whether this is process 0, which writes the run's files."""
    return jax.process_index() == 0


def on_first(action: Callable[[], Any]) -> Any:
    """The result of an action that only process 0 runs. All processes wait for it.

    Args:
      action: A function whose result can be written as JSON.

    Raises:
      DistributedError: On the other processes, if the action raised an error on process 0. Process
        0 raises the action's own error.
    """
    if jax.process_count() == 1:
        return action()
    error, message = None, {}
    if is_first():
        try:
            message = {"result": action()}
        except Exception as raised:
            error, message = raised, {"error": str(raised)}
    message = _from_first(message)
    if error is not None:
        raise error
    if "error" in message:
        raise DistributedError(f"process 0 failed: {message['error']}")
    return message["result"]


def _from_first(value: Any) -> Any:
    """The value of process 0. All processes must call the function at the same point."""
    payload = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(payload.size)))
    payload = payload if is_first() else np.zeros(size, np.uint8)
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(payload)).tobytes())


class Agreement:
    """Yes-or-no decisions of all processes at the same step: yes if any process wishes it.

    With several processes, `ask` returns the decision on the wishes of the previous call. The
    processes exchange wishes while the step runs, so none of them waits. With one process, `ask`
    returns its wishes at once.
    """

    def __init__(self) -> None:
        self._decision: jax.Array | None = None
        if jax.process_count() > 1:
            mesh = jax.make_mesh((jax.device_count(),), ("all",), axis_types=(AxisType.Auto,))
            self._sharding = NamedSharding(mesh, PartitionSpec("all"))
            replicated = NamedSharding(mesh, PartitionSpec())
            self._any = jax.jit(lambda wishes: wishes.any(0), out_shardings=replicated)

    def ask(self, wishes: Sequence[bool]) -> list[bool]:
        """The decisions, the same on every process. Every process must call this at every step.

        Args:
          wishes: The wishes of this process, as many at each call.
        """
        if jax.process_count() == 1:
            return list(wishes)
        own_wishes = np.tile(np.asarray(wishes, bool), (jax.local_device_count(), 1))
        previous = self._decision
        self._decision = self._any(
            jax.make_array_from_process_local_data(self._sharding, own_wishes)
        )
        return [False] * len(wishes) if previous is None else np.asarray(previous).tolist()

    def forget(self) -> None:
        """Drops the wishes of the last call, because the processes have just acted on them."""
        self._decision = None
