"""A trace of some training steps, for TensorBoard's profiler or Perfetto."""

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax

# Compilation and the first steps tell nothing of the others.
_STEPS_BEFORE = 3


class Profiler:
    """Traces `steps` steps of this process, after its first three; a context manager."""

    def __init__(self, folder: Path, steps: int):
        self._folder, self._steps = folder, steps
        self._taken = 0
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
        """Notes that a step was dispatched; `outputs` are waited for where the trace ends."""
        self._taken += 1
        if self._steps and self._taken == _STEPS_BEFORE:
            jax.block_until_ready(outputs)
            jax.profiler.start_trace(str(self._folder))
            self._tracing = True
        elif self._tracing and self._taken == _STEPS_BEFORE + self._steps:
            jax.block_until_ready(outputs)
            jax.profiler.stop_trace()
            self._tracing = False
