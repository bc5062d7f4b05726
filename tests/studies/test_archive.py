"""Results that are kept of a study's runs."""

import contextlib
import dataclasses
import shutil

import numpy as np
import pytest

from linseqrec.runs.finished import FinishedRun
from linseqrec.studies import archive
from linseqrec.studies.study import Arm, StudyRun, Table
from tests.runs import conftest as runs
from tests.runs.conftest import EXPERIMENT, TARGETS

save_run = runs.save_run

ARM = Arm("narrow", "x.py:sasrec")
TABLE = Table("t", "Why?", (ARM,))


def half_of_it(source, copy):
    """A copy that is interrupted."""
    content = source.read_bytes()
    copy.write_bytes(content[: len(content) // 2])
    raise KeyboardInterrupt


@pytest.mark.parametrize("world", [True, False], ids=["a world", "a log"])
def test_results_are_kept_of_worlds_and_not_of_logs(save_run, tmp_path, monkeypatch, world):
    data = dataclasses.replace(EXPERIMENT.data, folder="" if world else "somewhere")
    experiment = dataclasses.replace(EXPERIMENT, data=data)
    run = StudyRun(TABLE, ARM, 0, {}, experiment, tmp_path / "run", tmp_path / "kept")
    archive.keep(run)
    assert run.results is None and not run.kept.exists()
    ranks = np.random.default_rng(0).integers(1, 50, TARGETS).astype(float)
    save_run("run", experiment, dict.fromkeys(("none", "all"), ranks))
    progress = run.folder / "checkpoints" / "7" / "progress" / "metadata"
    progress.parent.mkdir(parents=True)
    progress.write_text('{"seconds": 60}')
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", half_of_it)
        with contextlib.suppress(KeyboardInterrupt):
            archive.keep(run)
    archive.keep(run)
    if not world:
        assert not run.kept.exists()
        return
    (run.folder / "results.json").unlink()
    assert run.results == run.kept
    np.testing.assert_array_equal(FinishedRun.open(run.results).ranks["none"], ranks)
    assert (run.kept / progress.relative_to(run.folder)).read_text() == '{"seconds": 60}'
