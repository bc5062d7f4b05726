"""Speed of the training pipeline on one thread, in tokens per second.

A token is a slot with an event. Padding does not count.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator

import numpy as np

from linseqrec.benchmarks import measuring
from linseqrec.data.dataset import Dataset
from linseqrec.data.pipeline import Plan, TrainingBatches, training_batches
from linseqrec.data.rows import cut_windows, pack
from linseqrec.data.splits import Split, leave_one_out

_PLANS: tuple[tuple[Plan, int, int], ...] = (
    ("windows", 200, 128),
    ("packed", 200, 128),
    ("packed", 2_048, 16),
    ("prefixes", 200, 512),
)
_MAX_STEPS = 200  # steps to read of an epoch; shorter epochs are read to their end


def rows(repeats: int, num_users: int = 6_000) -> Iterator[measuring.Row]:
    """The rows of reading batches with Grain, and of planning epochs.

    The log is random, with the size and the history lengths of MovieLens-1M.
    """
    dataset = _log(num_users)
    split = leave_one_out(dataset)
    epochs, counts = {}, {}
    for plan, length, batch_size in _PLANS:
        batches = training_batches(
            dataset, split, plan=plan, length=length, batch_size=batch_size, seed=0
        )
        name = f"{plan}, T {length:,}, {batch_size} rows"
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
