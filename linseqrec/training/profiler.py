"""`Profiler`: a trace of some training steps, for TensorBoard's profiler or Perfetto."""

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax

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
