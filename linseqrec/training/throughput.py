"""Training speed: events a second, model FLOP utilisation, and traces for a profiler."""

import collections
import contextlib
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from linseqrec.models.base import ModelConfig
from linseqrec.sharding import named_leaves
from linseqrec.training.checkpoint import Progress
from linseqrec.training.loss import LossConfig
from linseqrec.training.model import FunctionalModel

# Dense bfloat16 FLOP/s of one device by the vendors' datasheets, by a part of `device_kind`; the
# first that fits counts. JAX calls a v5p "TPU v5".
_DATASHEET = {
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6": 918e12,
}


def flops_per_event(params: nnx.State, model: ModelConfig) -> float:
    """Floating-point operations of the dense layers for one event, forward and backward.

    6 per weight: a multiplication and an addition, once forward and twice backward (the convention
    of arXiv 2204.02311, appendix B). Mixing over time is left out: in a linear model it is a small
    share. So are the scores of items: they count per target (`flops_per_target`).

    Args:
      params: The model's parameters.
      model: Its hyperparameters; they say which of its weights an event goes through repeatedly.
    """
    return 6.0 * sum(
        leaf.size * model.uses(name)
        for name, leaf in named_leaves(params).items()
        if name.endswith("kernel")
    )


def flops_per_target(table: Float[Array, "N1 D"], loss: LossConfig) -> float:
    """Operations of scoring one prediction against its candidates, forward and backward.

    The candidates are the whole catalogue, or the target and the negatives of a sampled loss.
    """
    num_items, width = table.shape
    return 6.0 * width * (num_items if loss.kind == "full" else 1 + loss.negatives)


def peak_flops(dtype: DTypeLike) -> float:
    """FLOP/s that one device could do.

    The vendor's figure for bfloat16 where it is known; else, and for float32, what a large matrix
    product reaches now (on a CPU that depends on who else is using it).
    """
    device = jax.devices()[0]
    if jnp.dtype(dtype) == jnp.bfloat16:
        for name, flops in _DATASHEET.items():
            if name in device.device_kind:
                return flops
    size = 1024 if device.platform == "cpu" else 8192
    square = jnp.full((size, size), 0.5, dtype)
    multiply = jax.jit(jnp.matmul)
    multiply(square, square).block_until_ready()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        multiply(square, square).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2.0 * size**3 / float(np.min(seconds))


class Meter:
    """The mean loss, the speed and the utilisation between two readings of training metrics."""

    def __init__(
        self, config: ModelConfig, loss: LossConfig, model: FunctionalModel, progress: Progress
    ):
        """Starts the clock, and goes on from the sums that `progress` holds."""
        self._per_event = flops_per_event(model.abstract[0], config)
        table = jax.eval_shape(model.item_table, nnx.merge_state(*model.shapes))
        self._per_target = flops_per_target(table, loss)
        devices = 1 if model.mesh is None else model.mesh.size
        self._peak = devices * peak_flops(config.compute_dtype)
        self._steps: list[tuple[jax.Array, jax.Array, jax.Array]] = []
        self._loss = progress.unlogged.get("loss", 0.0)
        self._targets = progress.unlogged.get("targets", 0.0)
        # Since this process started or last read, which may be less than the sums above.
        self._timed_events = self._timed_targets = 0.0
        self._unread_seconds = self._unsaved_seconds = 0.0
        self._start = time.perf_counter()

    def count(self, metrics: dict[str, jax.Array]) -> None:
        """Notes a step, without waiting for it."""
        self._steps.append((metrics["events"], metrics["targets"], metrics["loss"]))

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock inside."""
        self._stop()
        try:
            yield
        finally:
            self._start = time.perf_counter()

    def read(self, metrics: dict[str, jax.Array]) -> tuple[dict[str, float], dict[str, float]]:
        """Reads what was counted since the last reading, and waits for the last step.

        Args:
          metrics: The last step's.

        Returns:
          The step's metrics with the mean loss of all steps counted; and the speed.
        """
        values = {f"train/{name}": float(value) for name, value in metrics.items()}
        self._stop()
        self._gather()
        values["train/loss"] = self._loss / max(self._targets, 1.0)
        flops = self._timed_events * self._per_event + self._timed_targets * self._per_target
        speed = {
            "train/events_per_second": self._timed_events / self._unread_seconds,
            "train/model_flop_utilisation": flops / self._unread_seconds / self._peak,
        }
        self._loss = self._targets = self._timed_events = self._timed_targets = 0.0
        self._unread_seconds = 0.0
        return values, speed

    def added_to(self, progress: Progress) -> Progress:
        """`progress` with the seconds since the last call, and the sums since the last `read`.

        Do not call it inside `paused`.
        """
        self._gather()
        self._stop()
        seconds, self._unsaved_seconds = self._unsaved_seconds, 0.0
        sums = {"loss": self._loss, "targets": self._targets}
        return dataclasses.replace(progress, seconds=progress.seconds + seconds, unlogged=sums)

    def _gather(self) -> None:
        # Step by step in float64: the same sum, wherever a resumption cuts it.
        for events, targets, loss in jax.device_get(self._steps):
            self._loss += float(loss) * float(targets)
            self._targets += float(targets)
            self._timed_events += float(events)
            self._timed_targets += float(targets)
        self._steps = []

    def _stop(self) -> None:
        now = time.perf_counter()
        self._unread_seconds += now - self._start
        self._unsaved_seconds += now - self._start
        self._start = now


class StepQueue:
    """Bounds the steps that are dispatched and not finished to about a second of work.

    JAX dispatches steps faster than a device runs them. A stop has to wait for every step that is
    dispatched, since no step can be interrupted. At most eight steps wait, which is enough to keep
    a device busy while the host reads a batch.
    """

    # The work that may be unfinished; a step that takes longer is waited for.
    _SECONDS, _MAX_STEPS = 1.0, 8

    def __init__(self) -> None:
        """Makes an empty queue."""
        self._outputs: collections.deque[Any] = collections.deque()
        self._num_allowed = 0
        self._finished_at = time.perf_counter()

    def add(self, outputs: Any) -> None:
        """Adds a step that was just dispatched, and waits for the oldest ones if need be.

        Args:
          outputs: The step's arrays, which the next step does not consume.
        """
        self._outputs.append(outputs)
        while len(self._outputs) > self._num_allowed:
            jax.block_until_ready(self._outputs.popleft())
            # While the device is busy, a step's time lies between the ends of two steps.
            now = time.perf_counter()
            step_seconds = max(now - self._finished_at, 1e-6)
            self._num_allowed = min(int(self._SECONDS / step_seconds), self._MAX_STEPS)
            self._finished_at = now


# The first steps include compilation and are slower than the others.
_STEPS_BEFORE = 3


class Profiler:
    """A context manager that traces some steps of this process, after its first three."""

    def __init__(self, folder: Path, steps: int):
        """Starts no trace yet.

        Args:
          folder: Folder for the trace.
          steps: Number of steps to trace; 0 for no trace.
        """
        self._folder, self._steps = folder, steps
        self._num_dispatched = 0
        self._tracing = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._tracing:
            jax.profiler.stop_trace()

    def step(self, outputs: Any) -> None:
        """Counts a step, and starts or stops the trace after it.

        Args:
          outputs: The step's arrays. The method waits for them before it starts or stops the trace.
        """
        self._num_dispatched += 1
        if self._steps and self._num_dispatched == _STEPS_BEFORE:
            jax.block_until_ready(outputs)
            jax.profiler.start_trace(str(self._folder))
            self._tracing = True
        elif self._tracing and self._num_dispatched == _STEPS_BEFORE + self._steps:
            jax.block_until_ready(outputs)
            jax.profiler.stop_trace()
            self._tracing = False
