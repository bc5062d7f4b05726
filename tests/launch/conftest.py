"""One log and one run, made by the programs, for all that is tested of them."""

import numpy as np
import pytest

from tests.launch.programs import SMALL, program


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A log of 60 users, and one of two events who is never predicted, prepared by the program."""
    folder = tmp_path_factory.mktemp("log")
    rng = np.random.default_rng(0)
    lines = ["user,item,timestamp"]
    for user in range(60):
        items = (rng.integers(30) + np.cumsum(rng.integers(1, 3, 12))) % 30
        lines += [f"u{user},i{item},{1_000 + 60 * step}" for step, item in enumerate(items)]
    lines += ["brief,i0,1000", "brief,i1,1060"]
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
    done = program("prepare", f"--input={folder / 'log.csv'}", f"--output={folder / 'data'}")
    assert done.returncode == 0, done.stderr
    return folder / "data"


@pytest.fixture(scope="session")
def trained(prepared, tmp_path_factory):
    """A run trained by the program, and what it printed."""
    workdir = tmp_path_factory.mktemp("run")
    arguments = [*SMALL, f"--config.data.folder={prepared}", f"--workdir={workdir}"]
    done = program("train", *arguments)
    assert done.returncode == 0, done.stderr
    return workdir, arguments, done.stdout
