"""Checkpoints: which ones a run keeps, and how it continues after damage or a failed save."""

import contextlib
import dataclasses
import json
import os
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from linseqrec.errors import WorkdirError
from linseqrec.training import checkpoint_digests, saved_run, workdir
from linseqrec.training.checkpoint import CheckpointError, Checkpoints, Progress
from linseqrec.training.loop import train


@pytest.fixture(scope="module")
def train_once(tmp_path_factory):
    """A function that trains the run and returns its folder and final state, once per module."""
    cache = {}

    def train_or_reuse(run):
        if not cache:
            folder = tmp_path_factory.mktemp("trained")
            cache["state"] = train(run, folder)
            cache["folder"] = folder
        return cache["folder"], cache["state"]

    return train_or_reuse


@pytest.fixture
def run(experiment, make_run):
    return make_run(experiment, training={"num_epochs": 3})


@pytest.fixture
def run_copy(run, train_once, tmp_path):
    """A copy of the run's folder that a test may damage, and the steps of its checkpoints."""
    folder = tmp_path / "run"
    shutil.copytree(train_once(run)[0], folder)
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        return folder, checkpoints.steps()


def largest_file(folder):
    return max(
        (path for path in folder.rglob("*") if path.is_file()), key=lambda p: p.stat().st_size
    )


def flip_a_bit(folder):
    path = largest_file(folder)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate_a_file(folder):
    path = largest_file(folder)
    path.write_bytes(path.read_bytes()[:-7])


def remove_a_file(folder):
    largest_file(folder).unlink()


def remove_all_files(folder):
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (flip_a_bit, "has changed"),
        (truncate_a_file, "has changed"),
        (remove_a_file, "is missing"),
        (remove_all_files, "is missing"),
    ],
    ids=["flipped bit", "truncated file", "missing file", "no file"],
)
def test_a_run_continues_from_the_checkpoint_before_a_damaged_one(
    damage, fault, run, train_once, run_copy, capfd
):
    folder, steps = run_copy
    metrics = list(saved_run.read_metrics(folder))
    damage(folder / "checkpoints" / str(steps[-1]))
    state = train(run, folder)
    notice = capfd.readouterr().err
    assert f"checkpoint {steps[-1]} is damaged" in notice
    assert fault in notice
    # The run repeats the last epoch and ends in the same state.
    expected = train_once(run)[1]
    for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(one, other)
    assert list(saved_run.read_metrics(folder)) == metrics
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.sound_steps() == steps


@pytest.mark.parametrize("starts", ["one start", "a start for each save"])
def test_the_best_checkpoint_is_the_first_of_equal_metrics(starts, run, tmp_path):
    state, progress = run.step.initial_state(), Progress({})
    saved = contextlib.ExitStack()
    for step, metric in enumerate([0.1, 0.2, 0.2, 0.2, 0.2, 0.1], start=1):
        if starts != "one start" or step == 1:
            saved.close()
            checkpoints = saved.enter_context(Checkpoints(tmp_path))
        progress = progress.after_validation(step, metric)
        checkpoints.save(dataclasses.replace(state, step=jnp.array(step)), progress)
    with saved:
        assert checkpoints.steps() == [2, 5, 6]
        assert checkpoints.restore(checkpoints.resolve("best"), state).step == 2


def test_an_incomplete_checkpoint_is_ignored(run, run_copy):
    folder, steps = run_copy
    incomplete = folder / "checkpoints" / f"{steps[-1] + 1}.orbax-checkpoint-tmp"
    shutil.copytree(folder / "checkpoints" / str(steps[-1]) / "state", incomplete / "state")
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.restore_latest(run.step.initial_state())[0].step == steps[-1]


def test_a_run_without_a_sound_checkpoint_does_not_start_again(run, run_copy):
    folder, steps = run_copy
    for step in steps:
        flip_a_bit(folder / "checkpoints" / str(step))
    with pytest.raises(CheckpointError, match=f"all checkpoints .* are damaged: .{steps[0]}"):
        with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
            checkpoints.resolve("best")
    metrics = (folder / "metrics.jsonl").read_bytes()
    # The second start fails too: the first one did not move the damaged checkpoints.
    for _ in range(2):
        message = "no sound checkpoint is left .* another --workdir"
        with pytest.raises(CheckpointError, match=message):
            train(run, folder)
    assert (folder / "metrics.jsonl").read_bytes() == metrics


def test_an_error_that_is_no_damage_moves_no_checkpoint(run, run_copy, monkeypatch):
    folder, steps = run_copy

    def fail_to_read(self, step):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Checkpoints, "progress", fail_to_read)
    with pytest.raises(OSError, match="Input/output error"):
        train(run, folder)
    monkeypatch.undo()
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.sound_steps() == steps


def test_an_unreadable_checkpoint_without_digests_is_skipped(run, run_copy):
    folder, steps = run_copy
    (folder / "checkpoints" / "sha256" / f"{steps[-1]}.json").unlink()
    remove_all_files(folder / "checkpoints" / str(steps[-1]) / "state")
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.restore_latest(run.step.initial_state())[0].step == steps[-2]


def test_restoring_a_damaged_checkpoint_is_an_error(run, run_copy):
    folder, steps = run_copy
    flip_a_bit(folder / "checkpoints" / str(steps[0]))
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        with pytest.raises(CheckpointError, match=f"checkpoint {steps[0]} .* has changed"):
            checkpoints.restore(steps[0], run.step.initial_state())


def test_a_failed_save_is_an_error_and_the_run_continues_from_the_save_before(
    run, tmp_path, monkeypatch
):
    folder, steps = tmp_path / "run", run.batches.steps_per_epoch
    seal = checkpoint_digests.seal

    def fail_after_the_first_epoch(folder, step, kept):
        if step > steps:
            raise OSError(28, "No space left on device")
        seal(folder, step, kept)

    monkeypatch.setattr(checkpoint_digests, "seal", fail_after_the_first_epoch)
    message = rf"(?s)checkpoint {2 * steps} could not be saved.*No space left.*Sound.*{steps}"
    with pytest.raises(CheckpointError, match=message):
        train(run, folder)
    monkeypatch.undo()
    train(run, folder)
    assert json.loads((folder / "checkpoints" / "sha256" / f"{3 * steps}.json").read_text())


@pytest.fixture
def saved_twice(run, tmp_path):
    """A function that saves a step's checkpoint, and saves the same step with other progress."""
    state, folder = run.step.initial_state(), tmp_path / "checkpoints"
    first, second = Progress({}), Progress({"later": 1})

    def save_twice(before_the_second):
        with Checkpoints(folder) as checkpoints:
            checkpoints.save(state, first)
            checkpoints.wait()
            before_the_second()
            checkpoints.save(state, second)

    return folder, first, second, save_twice


def test_a_save_of_the_same_step_replaces_the_checkpoint(saved_twice):
    folder, _, second, save_twice = saved_twice
    save_twice(lambda: None)
    with Checkpoints(folder, read_only=True) as checkpoints:
        assert checkpoints.sound_steps() == [0] and checkpoints.progress(0) == second
    assert not (folder / "replaced").exists()


@pytest.mark.parametrize("part", ["save", "wait_until_finished"])
def test_a_failed_save_of_the_same_step_leaves_its_checkpoint(saved_twice, monkeypatch, part):
    folder, first, _, save_twice = saved_twice

    def fail(*arguments, **rest):
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match=r"(?s)0 could not be saved.*Sound checkpoints: 0"):
        save_twice(lambda: monkeypatch.setattr(ocp.CheckpointManager, part, fail))
    monkeypatch.undo()
    with Checkpoints(folder, read_only=True) as checkpoints:
        assert checkpoints.sound_steps() == [0] and checkpoints.progress(0) == first


class Killed(BaseException):
    """A kill."""


@pytest.mark.parametrize("calls", range(1, 5))
def test_a_kill_while_a_step_is_saved_again_loses_no_checkpoint(
    run, saved_twice, monkeypatch, calls
):
    """Before each renaming: two take the checkpoint aside, two put it back at the next start.

    The checkpoint is the only one: the workdir must not take the run for one without checkpoints.
    """
    folder, first, _, save_twice = saved_twice
    left, replace = [calls], os.replace
    experiment, card = run.experiment, run.source.dataset.card
    workdir.claim(folder.parent, experiment, card)

    def count(*paths):
        if "replaced" in f"{paths}":
            left[0] -= 1
            if not left[0]:
                raise Killed
        replace(*paths)

    def fail(*arguments, **rest):
        raise Killed

    def prepare():
        monkeypatch.setattr(os, "replace", count)
        monkeypatch.setattr(ocp.CheckpointManager, "save", fail)

    with pytest.raises(Killed):
        save_twice(prepare)
    with contextlib.suppress(Killed), Checkpoints(folder):
        pass
    assert left[0] <= 0
    monkeypatch.undo()
    with pytest.raises(WorkdirError, match="other"):
        workdir.claim(folder.parent, dataclasses.replace(experiment, name="other"), card)
    workdir.claim(folder.parent, experiment, card)
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.sound_steps() == [0] and checkpoints.progress(0) == first
    assert not (folder / "replaced").exists()


@pytest.mark.parametrize("damage", ["missing", "empty", "no JSON", "a folder"])
def test_a_damaged_file_of_digests_is_a_damaged_checkpoint(
    damage, run, train_once, run_copy, capfd
):
    folder, steps = run_copy
    path = folder / "checkpoints" / "sha256" / f"{steps[-1]}.json"
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    elif damage != "missing":
        path.write_text("" if damage == "empty" else "{")
    # The damage that such a checkpoint would hide.
    flip_a_bit(folder / "checkpoints" / str(steps[-1]))
    state = train(run, folder)
    assert f"checkpoint {steps[-1]} is damaged: {path}" in capfd.readouterr().err
    for one, other in zip(*map(jax.tree.leaves, (train_once(run)[1], state)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_run_that_was_killed_in_its_first_save_begins_anew(run, run_copy, capfd):
    folder, steps = run_copy
    checkpoints = folder / "checkpoints"
    for path in (checkpoints / "sha256").iterdir():
        path.unlink()
    # What a kill leaves that comes while the digests are written.
    (checkpoints / "sha256" / f".{steps[0]}.1.partial.json").write_text('{"state')
    with pytest.raises(CheckpointError, match="no sound checkpoint is left"):
        with Checkpoints(checkpoints) as opened:
            opened.restore_latest(run.step.initial_state())
    for step in steps[1:]:
        shutil.rmtree(checkpoints / str(step))
    with Checkpoints(checkpoints) as opened:
        assert opened.restore_latest(run.step.initial_state()) is None
        assert opened.steps() == []
    assert "the run begins anew: it was killed in its first save" in capfd.readouterr().err
    assert [path.name for path in (checkpoints / "damaged").iterdir()] == [f"{steps[0]}-0"]
    train(run, folder)


def test_the_latest_sound_checkpoint_stands_in_for_a_damaged_best_one(run, tmp_path, capfd):
    state, progress = run.step.initial_state(), Progress({})
    with Checkpoints(tmp_path) as checkpoints:
        for step, metric in enumerate([0.3, 0.1, 0.2], start=1):
            progress = progress.after_validation(step, metric)
            checkpoints.save(dataclasses.replace(state, step=jnp.array(step)), progress)
        assert checkpoints.resolve("best") == 1
        flip_a_bit(tmp_path / "1")
        assert checkpoints.resolve("best") == 3
        message = "checkpoint 1 is damaged: .* checkpoint 3, the latest sound one, takes its place"
        assert re.search(message, capfd.readouterr().err)
        flip_a_bit(tmp_path / "3")
        assert checkpoints.resolve("best") == 2
        assert "checkpoint 3 is damaged" in capfd.readouterr().err


def test_a_checkpoint_that_keeps_orbax_from_opening_is_set_aside(run, run_copy, capfd):
    folder, steps = run_copy
    checkpoints = folder / "checkpoints"
    (checkpoints / str(steps[-1]) / "_CHECKPOINT_METADATA").write_text("[]")
    message = f"damaged checkpoints in .*{steps[-1]}: _CHECKPOINT_METADATA has changed"
    with pytest.raises(CheckpointError, match=message):
        Checkpoints(checkpoints, read_only=True)
    with Checkpoints(checkpoints) as opened:
        assert opened.steps() == steps[:-1]
    assert (checkpoints / "damaged" / f"{steps[-1]}-0").is_dir()
    for step in steps[:-1]:
        (checkpoints / str(step) / "_CHECKPOINT_METADATA").write_text("[]")
    with pytest.raises(CheckpointError, match="move them elsewhere"):
        Checkpoints(checkpoints)
    assert (checkpoints / str(steps[0])).is_dir()
