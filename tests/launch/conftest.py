"""A data set and a trained run for the tests of programs, made by the programs themselves."""

import numpy as np
import pytest

from tests.launch.programs import SMALL, program


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """The folder of a data set with 60 users, and a user "brief" with too few events to predict."""
    folder = tmp_path_factory.mktemp("log")
    rng = np.random.default_rng(0)
    lines = ["user,item,timestamp"]
    for user in range(60):
        items = (rng.integers(30) + np.cumsum(rng.integers(1, 3, 12))) % 30
        lines += [f"u{user},i{item},{1_000 + 60 * step}" for step, item in enumerate(items)]
    lines += ["brief,i0,1000", "brief,i1,1060"]
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
    process = program("prepare", f"--input={folder / 'log.csv'}", f"--output={folder / 'data'}")
    assert process.returncode == 0, process.stderr
    return folder / "data"


@pytest.fixture(scope="session")
def trained(prepared, tmp_path_factory):
    """The workdir of a run trained by launch.train, its arguments, and the program's output."""
    workdir = tmp_path_factory.mktemp("run")
    arguments = [*SMALL, f"--config.data.folder={prepared}", f"--workdir={workdir}"]
    process = program("train", *arguments)
    assert process.returncode == 0, process.stderr
    return workdir, arguments, process.stdout
