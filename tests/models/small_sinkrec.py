"""A small SinkRec, histories for it, and a run of it."""

import dataclasses
import functools

import numpy as np

from linseqrec.config import EvaluationConfig, Experiment, TrainingConfig
from linseqrec.data.dataset import Dataset
from linseqrec.data.source import DataConfig, Source
from linseqrec.data.splits import leave_one_out
from linseqrec.models.sinkrec import SinkRecConfig
from linseqrec.models.weights import parameter_arrays
from linseqrec.training.run import Run
from tests.models.reference import make_events, random_histories

SMALL = SinkRecConfig(
    width=12,
    heads=2,
    key_width=4,
    value_width=5,
    attention_window=6,
    feed_forward=2,
    dilations=(1, 3),
    levels=2,
    codes=8,
    gap_features=5,
    dropout=0.0,
    chunk_size=8,
)


def ragged(time=20, seed=0):
    """A full row, one with padding, one event, and two histories with padding between them; with
    gaps from a minute to years."""
    full, part, one, first, second = random_histories([time, 11, 1, 6, 9])
    return with_times(make_events([[full], [part], [one], [first, second]], time, gap=2), seed)


def with_times(events, seed=0):
    gaps = 60 * np.exp(np.random.default_rng(seed).uniform(0, 13, events.items.shape))
    times = np.cumsum(gaps, axis=1).astype(np.int32)
    return dataclasses.replace(events, timestamps=np.where(events.segment_ids > 0, times, 0))


@functools.cache
def small_run(parts=1, mesh=None):
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 20, 40)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = rng.integers(1, 25, offsets[-1]).astype(np.int32)
    dataset = Dataset.from_arrays(items, np.arange(offsets[-1]) * 10**5, offsets, 24)
    return Run.of(
        Experiment(
            # One window and one pass: compiling a step of more takes most of a minute.
            model=dataclasses.replace(SMALL, dilations=(1,), loops=1),
            data=DataConfig(length=16, batch_size=8),
            training=TrainingConfig(
                num_epochs=1.0, evaluate_every=1, log_every=1, accumulation_steps=parts
            ),
            evaluation=EvaluationConfig(batch_size=16),
        ),
        Source(dataset, leave_one_out(dataset), None),
        mesh,
    )


def by_name(made, variables):
    return parameter_arrays(made.model.merge(variables))


def out_of_use(state):
    """With a usage by which every code dies at the next step."""
    usage = state.buffers["memory"]["usage"]
    usage[...] = usage[...] * 0 + 0.01
    return state
