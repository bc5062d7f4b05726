"""A run's length under `training.max_minutes`: how many steps fit is measured once and kept.

The learning-rate schedule ends at the last step, so the number of steps must be known before the
first one. It is saved in the workdir: a resumed run has the same schedule.
"""

import contextlib
import dataclasses
import time
from pathlib import Path

import jax
import numpy as np

from linseqrec.data.pipeline import READ_AHEAD
from linseqrec.errors import FileError, WorkdirError
from linseqrec.files import read_json, write_json
from linseqrec.training import distributed
from linseqrec.training.run import Run
from linseqrec.training.step import StepRunner, TrainState
from linseqrec.training.throughput import StepQueue

FILE = "budget.json"
# Steps that are timed, at most, and the share of the budget that they may take.
_TIMED_STEPS, _TIMED_SHARE = 50, 0.02
# Only the first batch of each width compiles. With at least this many batches, the median excludes
# compilations; with fewer, `measure` times a second validation.
_MANY_BATCHES = 10


@dataclasses.dataclass(frozen=True)
class Costs:
    """How long the parts of a run take, in seconds.

    Attributes:
      spent: What the measurement itself took.
      compilation: The first two steps with their compilation.
      step: A step, with the reading of its batch.
      validation: A validation.
    """

    spent: float
    compilation: float
    step: float
    validation: float

    def steps_within(self, seconds: float, evaluate_every: int) -> int:
        """The number of steps that a run has time for, at least 1.

        Args:
          seconds: The time of the whole training, this measurement included.
          evaluate_every: Steps between validations. The run ends with a validation.
        """
        left = seconds - self.spent - self.compilation - self.validation
        return max(1, int(left / (self.step + self.validation / evaluate_every)))


def within_budget(run: Run, folder: Path, *, keeps_length: bool) -> Run:
    """The run with as many steps as fit into `training.max_minutes`, which it must have.

    All processes of a run call this together. The first one's clock decides.

    Args:
      run: The run. `training.num_epochs` is its longest length.
      folder: The workdir.
      keeps_length: Whether the run has the length that it began with; else it is measured.

    Raises:
      WorkdirError: The length that the run began with cannot be read.
    """
    minutes = run.experiment.training.max_minutes
    num_steps = (
        distributed.on_first(lambda: _read(folder / FILE, minutes)) if keeps_length else None
    )
    if num_steps is None:
        costs = measure(run, 60 * minutes)

        def fix() -> int:
            fitting = min(costs.steps_within(60 * minutes, run.evaluate_every), run.num_steps)
            saved = {"max_minutes": minutes, "num_steps": fitting}
            write_json(folder / FILE, saved | {"seconds": dataclasses.asdict(costs)})
            print(
                f"training.max_minutes {minutes:g}: {fitting:,} of {run.num_steps:,} steps, "
                f"{fitting / run.batches.steps_per_epoch:.1f} epochs",
                flush=True,
            )
            return fitting

        num_steps = distributed.on_first(fix)
    # A resumed run may have fewer epochs than it began with.
    num_steps = min(num_steps, run.num_steps)
    return run if num_steps == run.num_steps else dataclasses.replace(run, num_steps=num_steps)


def measure(run: Run, seconds: float) -> Costs:
    """Times some steps and a validation of an untrained state, which is then dropped.

    Args:
      run: The run.
      seconds: The budget. Timing the steps takes a small share of it.
    """
    begun = time.perf_counter()
    runner = StepRunner(run.step, run.step.initial_state())
    with contextlib.closing(iter(run.batches.to_iter_dataset(READ_AHEAD))) as batches:

        def seconds_of(num_steps: int) -> float:
            start, queue = time.perf_counter(), StepQueue()
            for _ in range(num_steps):
                metrics = runner.step(run.step.place(next(batches)))
                queue.add(metrics)
            jax.block_until_ready(metrics)
            return time.perf_counter() - start

        # The second step may compile again, for the layouts of the first one's result.
        compilation = seconds_of(2)
        fitting = int(_TIMED_SHARE * seconds / seconds_of(1))
        # Processes compute a step together: if one of them did more, it would wait for ever.
        num_steps = distributed.on_first(lambda: min(max(fitting, 1), _TIMED_STEPS))
        step = seconds_of(num_steps) / num_steps
    batch_seconds = _validation_seconds(run, runner.state)
    if len(batch_seconds) < _MANY_BATCHES:
        batch_seconds = _validation_seconds(run, runner.state)
    # The median, because the first batches of the first pass include compilations.
    validation = float(np.median(batch_seconds)) * len(batch_seconds)
    return Costs(
        spent=time.perf_counter() - begun,
        compilation=compilation,
        step=step,
        validation=validation,
    )


def _validation_seconds(run: Run, state: TrainState) -> np.ndarray:
    """The time of each batch of a validation, in seconds."""
    moments: list[float] = []
    run.evaluate(state.variables, "validation", between=lambda: moments.append(time.perf_counter()))
    return np.diff([*moments, time.perf_counter()])


def _read(path: Path, minutes: float) -> int | None:
    """The run's length, or None if it was measured for another budget."""
    try:
        saved = read_json(path, {"num_steps": int, "max_minutes": float})
    except FileError as error:
        raise WorkdirError(
            f"{path} does not say how many steps the run has under training.max_minutes: restore "
            "the file, or give the number as training.num_epochs with "
            "--allow_config_change=training.max_minutes,training.num_epochs"
        ) from error
    return saved["num_steps"] if saved["max_minutes"] == minutes else None
