"""What becomes of a run whose checkpoints are damaged or cannot be written."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linseqrec.training import workdir
from linseqrec.training.checkpoint import CheckpointError, Checkpoints, Progress
from linseqrec.training.loop import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run's folder, the run, and the state that it ended with."""
    made = {}

    def make(run):
        if not made:
            folder = tmp_path_factory.mktemp("trained")
            made["state"], _ = train(run, folder)
            made["folder"] = folder
        return made["folder"], made["state"]

    return make


@pytest.fixture
def run(experiment, make_run):
    return make_run(experiment, training={"num_epochs": 3})


@pytest.fixture
def damaged(run, trained, tmp_path):
    """A copy of the run's folder to be damaged: its path, and its steps."""
    folder = tmp_path / "run"
    shutil.copytree(trained(run)[0], folder)
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        return folder, checkpoints.steps()


def largest(folder):
    return max(
        (path for path in folder.rglob("*") if path.is_file()), key=lambda p: p.stat().st_size
    )


def flip(folder):
    path = largest(folder)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(folder):
    path = largest(folder)
    path.write_bytes(path.read_bytes()[:-7])


def remove(folder):
    largest(folder).unlink()


def empty(folder):
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        path.unlink()


@pytest.mark.parametrize(
    ("harm", "said"),
    [(flip, "has changed"), (truncate, "has changed"), (remove, "missing"), (empty, "missing")],
)
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_used(
    harm, said, run, trained, damaged, capfd
):
    folder, steps = damaged
    before = list(workdir.read_metrics(folder))
    harm(folder / "checkpoints" / str(steps[-1]))
    state, _ = train(run, folder)
    told = capfd.readouterr().err
    assert f"checkpoint {steps[-1]} is damaged" in told
    assert said in told
    # The last epoch was trained again, and ends where it did before.
    for one, other in zip(jax.tree.leaves(trained(run)[1]), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(one, other)
    assert list(workdir.read_metrics(folder)) == before
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.sound_steps() == steps


def test_the_first_of_equally_good_checkpoints_is_kept(run, tmp_path):
    state, metrics = run.step.initial_state(), [0.1, 0.2, 0.2, 0.2, 0.2, 0.1]
    with Checkpoints(tmp_path) as checkpoints:
        for step, metric in enumerate(metrics):
            best = min(step, 1)
            progress = Progress({}, validated_step=step, best_step=best, best_metric=metrics[best])
            checkpoints.save(dataclasses.replace(state, step=jnp.array(step)), progress, metric)
        assert checkpoints.steps() == [1, 4, 5]
        assert checkpoints.restore(checkpoints.resolve("best"), state).step == 1


def test_a_half_written_checkpoint_is_left_alone(run, damaged):
    folder, steps = damaged
    half = folder / "checkpoints" / f"{steps[-1] + 1}.orbax-checkpoint-tmp"
    shutil.copytree(folder / "checkpoints" / str(steps[-1]) / "state", half / "state")
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.restore_latest(run.step.initial_state())[0].step == steps[-1]


def test_a_run_without_a_sound_checkpoint_does_not_start_again(run, damaged):
    folder, steps = damaged
    for step in steps:
        flip(folder / "checkpoints" / str(step))
    with pytest.raises(CheckpointError, match=f"all checkpoints .* are damaged: .{steps[0]}"):
        with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
            checkpoints.resolve("best")
    metrics = (folder / "metrics.jsonl").read_bytes()
    # Nor does the next start, which finds what this one left.
    for _ in range(2):
        message = "no sound checkpoint is left .* another --workdir"
        with pytest.raises(CheckpointError, match=message):
            train(run, folder)
    assert (folder / "metrics.jsonl").read_bytes() == metrics


def test_what_is_not_the_checkpoints_fault_sets_none_aside(run, damaged, monkeypatch):
    folder, steps = damaged

    def unreadable(self, step):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Checkpoints, "progress", unreadable)
    with pytest.raises(OSError, match="Input/output error"):
        train(run, folder)
    monkeypatch.undo()
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.sound_steps() == steps
    # Of one that was not sealed nothing is known but that it cannot be read.
    (folder / "checkpoints" / "sha256" / f"{steps[-1]}.json").unlink()
    empty(folder / "checkpoints" / str(steps[-1]) / "state")
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.restore_latest(run.step.initial_state())[0].step == steps[-2]


def test_a_damaged_checkpoint_is_not_evaluated(run, damaged):
    folder, steps = damaged
    flip(folder / "checkpoints" / str(steps[0]))
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        with pytest.raises(CheckpointError, match=f"checkpoint {steps[0]} .* has changed"):
            checkpoints.restore(steps[0], run.step.initial_state())


def test_a_save_that_fails_says_so_and_the_last_good_one_stays(run, tmp_path, monkeypatch):
    folder, steps = tmp_path / "run", run.batches.steps_per_epoch
    written = Checkpoints._write_digests

    def full(self, step):
        if step > steps:
            raise OSError(28, "No space left on device")
        written(self, step)

    monkeypatch.setattr(Checkpoints, "_write_digests", full)
    message = rf"(?s)checkpoint {2 * steps} could not be saved.*No space left.*Sound.*{steps}"
    with pytest.raises(CheckpointError, match=message):
        train(run, folder)
    monkeypatch.undo()
    train(run, folder)
    assert json.loads((folder / "checkpoints" / "sha256" / f"{3 * steps}.json").read_text())
