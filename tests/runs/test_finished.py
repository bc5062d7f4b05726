import errno
import os
from pathlib import Path

import numpy as np
import pytest

from linseqrec.errors import RunsError
from linseqrec.runs.finished import FinishedRun, find_runs
from linseqrec.training import workdir
from tests.runs.conftest import EXPERIMENT, changed


def test_every_run_below_is_found_once_and_the_unfinished_are_told_from_the_others(
    save_run, tmp_path
):
    first = save_run("sweep/deep/seed=0")
    second = save_run("sweep/seed=1", changed(training={"seed": 1}))
    training, silent, failed, broken = (tmp_path / "sweep" / name for name in "wxyz")
    for folder in (training, silent):
        workdir.claim(folder, EXPERIMENT, {})
    (training / "metrics.jsonl").write_text('{"step": 40}\n')
    failed.mkdir()
    (failed / "log.txt").write_text("$ python\nerror: no such data\n")
    # A log beside runs is no run's.
    (tmp_path / "sweep" / "log.txt").write_text("of the sweep\n")
    save_run("sweep/z", changed(training={"seed": 2}))
    (broken / "ranks" / "test.npz").unlink()

    with workdir.lock(training):
        finished, unfinished = find_runs(
            [tmp_path / "sweep", first, tmp_path / "sweep" / "x" / ".." / "deep"]
        )
    assert [run.folder for run in finished] == [first, second]
    assert unfinished == {
        training: "training, at step 40",
        silent: "stopped, nothing logged yet: run its command again",
        failed: "did not begin; its log ends in: error: no such data",
        broken: "has results, but no ranks/test.npz",
    }
    run = finished[1]
    assert run.experiment.training.seed == 1
    np.testing.assert_array_equal(
        run.ranks["none"], np.random.default_rng(1).integers(1, 30, 200).astype(float)
    )


def test_a_run_whose_model_is_gone_is_named_and_the_others_reported(save_run):
    first, gone = save_run("a"), save_run("b", changed(training={"seed": 1}))
    config = gone / "config.json"
    config.write_text(config.read_text().replace("linseqrec.models.sasrec:", "<run_path>:"))
    finished, unfinished = find_runs([first, gone])
    assert [run.folder for run in finished] == [first]
    (stage,) = unfinished.values()
    assert list(unfinished) == [gone] and stage.startswith("cannot be read:")
    assert f"{config}: the class <run_path>:SASRecConfig cannot be found" in stage
    with pytest.raises(RunsError, match="1 has begun\n.*b: cannot be read: .*cannot be found"):
        find_runs([gone])


def test_a_folder_that_cannot_be_read_is_named_and_the_others_reported(
    save_run, tmp_path, monkeypatch
):
    first, closed = save_run("a"), tmp_path / "closed"
    closed.mkdir()
    listdir = os.listdir

    def refusing(path="."):
        if Path(path) == closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refusing)
    finished, unfinished = find_runs([tmp_path])
    assert [run.folder for run in finished] == [first]
    assert unfinished == {closed: f"cannot be read: {closed}: Permission denied"}


def test_ranks_of_another_run_are_refused(save_run):
    first, second = save_run("a"), save_run("b", changed(training={"seed": 1}))
    (first / "ranks" / "test.npz").write_bytes((second / "ranks" / "test.npz").read_bytes())
    message = "a: ranks/test.npz does not give the NDCG@10"
    with pytest.raises(RunsError, match=message):
        FinishedRun.open(first)
    finished, unfinished = find_runs([first, second])
    assert [run.folder for run in finished] == [second]
    assert message in unfinished[first]


def test_nothing_to_report_is_said(save_run, tmp_path):
    with pytest.raises(RunsError, match="no folder .*nowhere"):
        find_runs([tmp_path / "nowhere"])
    (save_run("a") / "results.json").unlink()
    with pytest.raises(RunsError, match="no finished run in .*; 1 has begun"):
        find_runs([tmp_path])
