"""A small experiment on a small log, fast enough to be trained in a test."""

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np
import pytest

from linseqrec.config import EvaluationConfig, Experiment, TrainingConfig
from linseqrec.data.dataset import Dataset
from linseqrec.data.source import DataConfig, Source
from linseqrec.data.splits import leave_one_out
from linseqrec.models.recgrela import RecGRELAConfig
from linseqrec.training import throughput
from linseqrec.training.model import FunctionalModel
from linseqrec.training.run import Run
from linseqrec.training.step import CompiledStep


@pytest.fixture(scope="session")
def source() -> Source:
    """40 users who walk around a ring of 24 items, with slips."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 20, 40)
    steps = np.where(rng.random(lengths.sum()) < 0.8, 1, rng.integers(0, 24, lengths.sum()))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = np.concatenate(
        [np.cumsum(steps[a:b]) % 24 + 1 for a, b in zip(offsets[:-1], offsets[1:], strict=True)]
    )
    times = np.concatenate([np.arange(length) * 60 for length in lengths])
    dataset = Dataset.from_arrays(items.astype(np.int32), times, offsets, 24)
    return Source(dataset, leave_one_out(dataset), None)


@pytest.fixture
def experiment() -> Experiment:
    return Experiment(
        model=RecGRELAConfig(width=16, heads=2, num_layers=1),
        data=DataConfig(length=16, batch_size=8),
        training=TrainingConfig(num_epochs=4, evaluate_every=1, log_every=1),
        evaluation=EvaluationConfig(filter_seen=("none", "all"), batch_size=16),
    )


@pytest.fixture(scope="module")
def steps() -> Iterator[dict[Experiment, CompiledStep]]:
    """The steps by experiment. Meanwhile, each experiment's model is built and traced once.

    Both are functions without a state. The speed of the machine is measured once, too.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FunctionalModel, "of", functools.cache(FunctionalModel.of))
        patch.setattr(throughput, "peak_flops", functools.cache(throughput.peak_flops))
        yield {}


@pytest.fixture
def make_run(source, steps):
    """A run of an experiment with changed parts: make_run(experiment, training={"seed": 1}).

    Runs of one experiment have their own events and evaluators. They share the model and the step,
    so that each is traced once.
    """

    def make(experiment: Experiment, **changes: dict) -> Run:
        parts = {
            part: dataclasses.replace(getattr(experiment, part), **fields)
            for part, fields in changes.items()
        }
        run = Run.of(dataclasses.replace(experiment, **parts), source)
        run.__dict__["step"] = steps.setdefault(run.experiment, run.step)
        return run

    return make
