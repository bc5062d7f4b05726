"""Speed of the training pipeline on one thread, and the time that the training loop itself takes.

A token is a slot with an event. Padding does not count.
"""

import contextlib
import dataclasses
import io
import itertools
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from linseqrec.benchmarks import measuring
from linseqrec.config import Experiment, TrainingConfig
from linseqrec.data.dataset import Dataset
from linseqrec.data.pipeline import TrainingBatches
from linseqrec.data.rows import cut_windows, pack
from linseqrec.data.source import DataConfig, Source
from linseqrec.data.splits import Split, leave_one_out
from linseqrec.models.gated_deltanet import GatedDeltaNetConfig
from linseqrec.training.loop import train
from linseqrec.training.run import Run
from linseqrec.training.step import StepRunner, TrainState

_ROWS = (
    DataConfig(plan="windows", length=200, batch_size=128),
    DataConfig(plan="packed", length=200, batch_size=128),
    DataConfig(plan="packed", length=2_048, batch_size=16),
    DataConfig(plan="prefixes", length=200, batch_size=512),
)
_MAX_STEPS = 200  # steps to read of an epoch; shorter epochs are read to their end
_LOOP_STEPS = 600  # steps of the training loop


def rows(repeats: int, num_users: int = 6_000) -> Iterator[measuring.Row]:
    """The rows of reading batches with Grain, of planning epochs, and of the training loop.

    The log is random, with the size and the history lengths of MovieLens-1M.
    """
    dataset = _log(num_users)
    split = leave_one_out(dataset)
    epochs, counts = {}, {}
    for config in _ROWS:
        batches = TrainingBatches(dataset, split, config, seed=0)
        name = f"{config.plan}, T {config.length:,}, {config.batch_size} rows"
        steps = min(batches.steps_per_epoch, _MAX_STEPS)
        epochs[name] = _reader(batches, steps)
        tokens = sum(int(np.sum(batches[step].events.segment_ids > 0)) for step in range(steps))
        counts[name] = {"steps": steps, "tokens": tokens, "fill": batches.fill}
    case = (
        f"an epoch's shuffle and up to {_MAX_STEPS} of its batches, {dataset.num_events:,} events"
    )
    for row in measuring.compare(case, epochs, repeats=repeats):
        own_counts = counts[row.variant]
        speed = own_counts["tokens"] / row.seconds if row.seconds else 0.0
        yield dataclasses.replace(row, extra={**own_counts, "tokens_per_second": speed})
    yield from measuring.compare("planning", _planning(dataset, split), repeats=repeats)
    yield from loop(min(num_users, 300))


def _log(num_users: int) -> Dataset:
    """A log with log-normal history lengths: median about 96, mean about 165, maximum 2,300."""
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(np.log(96), 1.04, num_users), 20, 2_300).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = generator.integers(1, 3_417, offsets[-1])
    return Dataset.from_arrays(items, np.arange(offsets[-1]), offsets)


def _reader(batches: TrainingBatches, steps: int) -> Callable[[], None]:
    """A function that plans a new epoch at each call and reads its first `steps` batches."""
    iterator = iter(batches)
    epoch = itertools.count()

    def read() -> None:
        iterator.set_state({"next_index": next(epoch) * batches.steps_per_epoch})
        for _ in range(steps):
            next(iterator)

    return read


def _planning(dataset: Dataset, split: Split) -> dict[str, Callable[[], object]]:
    """The planning of packed rows of 2,048 slots: the part of each run, and that of each epoch."""
    lengths = cut_windows(dataset.offsets[:-1], split.train_end, 2_048).lengths
    packed = pack(lengths, 2_048)
    epoch = itertools.count()
    return {
        "row shapes, once a run": lambda: pack(lengths, 2_048),
        "shuffle, once an epoch": lambda: packed.shuffled(0, next(epoch)),
    }


def loop(num_users: int, num_steps: int = _LOOP_STEPS) -> Iterator[measuring.Row]:
    """Times the training loop around a step without arithmetic: what Python adds to each step.

    The step takes and returns the arrays of Gated DeltaNet's (width 64, batches of 16 rows of 200)
    and computes nothing. A device that takes longer for a step than the loop does never waits for
    Python.

    Args:
      num_users: Users of the log.
      num_steps: Steps to take.

    Yields:
      The main thread's time of a step, of the step's call in it, and of the batch that the reading
      thread makes meanwhile. Times are medians: steps that log or save are a few of them.
    """
    dataset = _log(num_users)
    source = Source(dataset, leave_one_out(dataset), None)
    experiment = Experiment(
        name="loop", model=GatedDeltaNetConfig(), data=DataConfig(batch_size=16)
    )
    epochs = num_steps / Run.of(experiment, source).batches.steps_per_epoch
    training = TrainingConfig(num_epochs=epochs, evaluate_every=epochs)
    run = Run.of(dataclasses.replace(experiment, training=training), source)
    # In the place of the compiled step, which the run makes when it is first asked for.
    vars(run.step)["update"] = _idle_step(run)
    place, in_loop = run.step.place, []

    def timed_place(batch: Any) -> Any:
        in_loop.append(_Moment.now())
        return place(batch)

    vars(run.step)["place"] = timed_place
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        train(run, pathlib.Path(folder))
    runner, batches = StepRunner(run.step, run.step.initial_state()), iter(run.batches)
    batch = next(batches)
    case = "the training loop, one step, 16 rows of 200"
    for name, moments in (
        ("loop", in_loop),
        ("of it: the step's call", _moments(lambda: runner.step(batch), num_steps)),
        ("beside it: making a batch", _moments(lambda: next(batches), num_steps)),
    ):
        # The first step compiles.
        seconds, processor = np.diff(np.array(moments[1:]), axis=0).T
        low, middle, high = map(float, np.quantile(seconds, (0.25, 0.5, 0.75)))
        cpu = float(np.median(processor))
        yield measuring.Row(case, name, middle, quartiles=(low, high), processor_seconds=cpu)


def _idle_step(run: Run) -> Any:
    """A step that counts itself and leaves all else as it is."""
    metrics = jax.eval_shape(run.step.update, run.step.initial_state(), run.batches[0])[1]

    def step(state: TrainState, batch: Any) -> Any:
        zeros = {name: jnp.sum(batch.weights) * 0 for name in metrics}
        return dataclasses.replace(state, step=state.step + 1), zeros

    return jax.jit(step, donate_argnums=0)


class _Moment(NamedTuple):
    """A reading of the clock, and of the time that this thread has had a processor for."""

    seconds: float
    processor_seconds: float

    @classmethod
    def now(cls) -> Self:
        return cls(time.perf_counter(), time.thread_time())


def _moments(function: Callable[[], Any], calls: int) -> list[_Moment]:
    """The moments before a number of calls in a row, and after them."""
    moments = [_Moment.now()]
    for _ in range(calls):
        function()
        moments.append(_Moment.now())
    return moments
