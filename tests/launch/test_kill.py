"""A run that is killed again and again ends as one that never was, bit for bit (on a CPU)."""

import json
import os
import random
import signal

import jax
import numpy as np
import pytest

from linseqrec.training import workdir
from linseqrec.training.checkpoint import Checkpoints
from linseqrec.training.run import Run
from tests.launch.programs import TINY, killed, last_step, program

# LINSEQREC_KILLS=500 makes a soak of it.
KILLS = int(os.environ.get("LINSEQREC_KILLS", 6))


def saving(folder):
    return any(folder.glob("checkpoints/*tmp*"))


def state_of(folder):
    run = Run.of(workdir.read_experiment(folder))
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        steps = checkpoints.sound_steps()
        state = checkpoints.restore(steps[-1], run.step.initial_state())
        progress = checkpoints.progress(steps[-1])
    return jax.tree.leaves(state), steps, progress


@pytest.mark.timeout(90 * KILLS)
def test_killed_at_any_moment_it_ends_as_the_unbroken_run(prepared, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    # Both use what the first has compiled.
    base = [*TINY, f"--config.training.num_epochs={2 * KILLS}", f"--config.data.folder={prepared}"]
    # Each user has one event more than a row holds, and is cut elsewhere in each epoch.
    base += ["--config.data.phase=random"]
    assert program("train", *base, f"--workdir={whole}").returncode == 0
    arguments = [*base, f"--workdir={broken}"]
    draw = random.Random(0)
    kills = 0
    while kills < KILLS:
        steps = draw.randint(1, 40)
        moment = [
            lambda folder, before, steps=steps: last_step(folder) >= before + steps,
            lambda folder, before: last_step(folder) > before + 1 and saving(folder),
        ][kills % 2]
        # One in five by the scheduler's signal, which saves first.
        number = signal.SIGTERM if kills % 5 == 4 else signal.SIGKILL
        if not killed(arguments, broken, moment, number):
            break
        kills += 1
    assert program("train", *arguments).returncode == 0
    assert kills == KILLS, "the run ended before it was killed often enough: make it longer"

    one, other = state_of(whole), state_of(broken)
    for expected, found in zip(one[0], other[0], strict=True):
        np.testing.assert_array_equal(expected, found)
    assert one[1][-1] == other[1][-1]
    for field in ("iterator", "best_step", "best_metric", "stale"):
        assert getattr(one[2], field) == getattr(other[2], field), field
    assert (whole / "metrics.jsonl").read_bytes() == (broken / "metrics.jsonl").read_bytes()
    results = [json.loads((folder / "results.json").read_text()) for folder in (whole, broken)]
    assert results[0]["test"] == results[1]["test"]


def test_one_workdir_serves_one_process(prepared, tmp_path):
    arguments = [*TINY, f"--config.data.folder={prepared}", f"--workdir={tmp_path}"]
    with workdir.lock(tmp_path):
        done = program("train", *arguments)
    assert done.returncode == 1
    assert "is in use by process" in done.stderr
