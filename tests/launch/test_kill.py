"""A run that is killed many times equals an uninterrupted run bit for bit, on a CPU."""

import json
import os
import random
import signal

import jax
import numpy as np
import pytest

from linseqrec.training import saved_run, workdir
from linseqrec.training.checkpoint import Checkpoints
from linseqrec.training.run import Run
from tests.launch.programs import TINY, last_step, program, train_and_kill

# For a long test, set LINSEQREC_KILLS=500.
KILLS = int(os.environ.get("LINSEQREC_KILLS", 6))


def is_saving(folder):
    return any(folder.glob("checkpoints/*tmp*"))


def read_last_checkpoint(folder):
    """The leaves of the last sound checkpoint's state, the sound steps, and the progress."""
    run = Run.of(saved_run.read_experiment(folder))
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        steps = checkpoints.sound_steps()
        state = checkpoints.restore(steps[-1], run.step.initial_state())
        progress = checkpoints.progress(steps[-1])
    return jax.tree.leaves(state), steps, progress


@pytest.mark.timeout(90 * KILLS)
def test_a_run_killed_at_random_moments_equals_an_uninterrupted_run(prepared, tmp_path):
    uninterrupted, killed = tmp_path / "uninterrupted", tmp_path / "killed"
    base = [*TINY, f"--config.training.num_epochs={2 * KILLS}", f"--config.data.folder={prepared}"]
    # Each user has one event more than fits in a row. Each epoch cuts the histories elsewhere.
    base += ["--config.data.phase=random"]
    assert program("train", *base, f"--workdir={uninterrupted}").returncode == 0
    arguments = [*base, f"--workdir={killed}"]
    generator = random.Random(0)
    kills = 0
    while kills < KILLS:
        num_steps = generator.randint(1, 40)

        def after_some_steps(folder, first_step, num_steps=num_steps):
            return last_step(folder) >= first_step + num_steps

        def in_a_save(folder, first_step):
            return last_step(folder) > first_step + 1 and is_saving(folder)

        # Every fifth signal is SIGTERM, after which the run saves.
        number = signal.SIGTERM if kills % 5 == 4 else signal.SIGKILL
        moment = in_a_save if kills % 2 else after_some_steps
        if not train_and_kill(arguments, killed, moment, number):
            break
        kills += 1
    assert program("train", *arguments).returncode == 0
    assert kills == KILLS, "the run ended before all kills: increase its number of epochs"

    expected_leaves, expected_steps, expected_progress = read_last_checkpoint(uninterrupted)
    leaves, steps, progress = read_last_checkpoint(killed)
    for leaf, expected in zip(leaves, expected_leaves, strict=True):
        np.testing.assert_array_equal(leaf, expected)
    assert steps[-1] == expected_steps[-1]
    for field in ("iterator", "best_step", "best_metric", "stale"):
        assert getattr(progress, field) == getattr(expected_progress, field), field
    folders = (uninterrupted, killed)
    metrics = [(folder / "metrics.jsonl").read_bytes() for folder in folders]
    assert metrics[0] == metrics[1]
    results = [json.loads((folder / "results.json").read_text()) for folder in folders]
    assert results[0]["test"] == results[1]["test"]


def test_two_processes_cannot_use_one_workdir(prepared, tmp_path):
    arguments = [*TINY, f"--config.data.folder={prepared}", f"--workdir={tmp_path}"]
    with workdir.lock(tmp_path):
        process = program("train", *arguments)
    assert process.returncode == 1
    assert "is in use by process" in process.stderr
