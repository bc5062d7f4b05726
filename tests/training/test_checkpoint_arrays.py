"""A state is saved, restored and trained without a second copy of its arrays."""

import gc
import shutil
import threading

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from linseqrec.training import checkpoint_arrays
from linseqrec.training.checkpoint import Checkpoints, Progress
from linseqrec.training.loop import train
from linseqrec.training.step import StepRunner


@pytest.fixture
def run(experiment, make_run):
    return make_run(experiment, training={"num_epochs": 1, "evaluate_every": 0.5})


def test_a_large_state_is_written_before_training_goes_on(run, tmp_path, monkeypatch):
    wait, threads = ocp.CheckpointManager.wait_until_finished, []

    def waits(self):
        threads.append(threading.current_thread())
        return wait(self)

    monkeypatch.setattr(ocp.CheckpointManager, "wait_until_finished", waits)
    waits_of_save = []
    for step, limit in enumerate((2**28, 0)):
        monkeypatch.setattr(checkpoint_arrays, "_BACKGROUND_BYTES", limit)
        with Checkpoints(tmp_path / str(step)) as checkpoints:
            threads.clear()
            checkpoints.save(run.step.initial_state(), Progress({}))
            waits_of_save.append(threads.count(threading.main_thread()))
    # Orbax itself waits once, for the save before.
    assert waits_of_save == [1, 2]


def test_few_large_arrays_are_read_at_once(run, tmp_path, monkeypatch):
    state, limit = run.step.initial_state(), 10_000
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, Progress({}))
    restore, groups = ocp.Checkpointer.restore, []

    def record(self, folder, args):
        arrays = [leaf for leaf in jax.tree.leaves(args.item) if leaf is not ocp.PLACEHOLDER]
        groups.append([4 * leaf.size for leaf in arrays])
        return restore(self, folder, args=args)

    monkeypatch.setattr(ocp.Checkpointer, "restore", record)
    monkeypatch.setattr(checkpoint_arrays, "_READ_AT_ONCE", limit)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        restored = checkpoints.restore(0, run.step.abstract_state)
    assert all(len(sizes) == 1 or sum(sizes) <= limit for sizes in groups)
    assert 2 < len(groups) < len(jax.tree.leaves(state))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for one, other in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.sharding == other.sharding and one.dtype == other.dtype


def test_the_item_table_is_in_memory_once(run, tmp_path, monkeypatch):
    """Beside its two moments, when a run begins and when it goes on."""
    apply, numbers = StepRunner.step, []

    def tables():
        """The number of tables in memory; several arrays may share one."""
        gc.collect()
        arrays = [array for array in jax.live_arrays() if array.shape == (25, 16)]
        return len({array.unsafe_buffer_pointer() for array in arrays})

    def count(self, batch):
        metrics = apply(self, batch)
        jax.block_until_ready(metrics)
        numbers.append(tables())
        return metrics

    monkeypatch.setattr(StepRunner, "step", count)
    # Else a save in the background holds the arrays, and the next step copies them.
    monkeypatch.setattr(checkpoint_arrays, "_BACKGROUND_BYTES", 0)
    before = tables()
    train(run, tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / str(run.num_steps))
    begun = set(numbers)
    numbers.clear()
    train(run, tmp_path)
    assert begun == set(numbers) == {before + 3}
