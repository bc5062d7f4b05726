"""A full disk is an error that keeps the last sound checkpoint, and the run can continue later.

The test limits the size of files, because it may not fill a disk.
"""

import signal
import subprocess
import sys

from linseqrec.training.checkpoint import Checkpoints
from tests.launch.programs import ROOT, TINY, last_step, program, train_and_kill


def sound_steps(folder):
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        return checkpoints.sound_steps()


def test_a_run_continues_after_the_disk_was_full(prepared, tmp_path):
    arguments = [*TINY, f"--config.data.folder={prepared}", f"--workdir={tmp_path}"]
    arguments += ["--config.training.num_epochs=2"]

    def after_two_steps(folder, _):
        return last_step(folder) >= 2

    assert train_and_kill(arguments, tmp_path, after_two_steps, signal.SIGTERM)
    steps = sound_steps(tmp_path)
    assert steps
    # With 0 KB no line of metrics.jsonl can be written; with 20 KB lines can, but no checkpoint.
    for file_kilobytes, message in ((0, "free some disk space"), (20, "could not be saved in")):
        with_limit = ["bash", "-c", f'ulimit -f {file_kilobytes}; exec "$@"', "-"]
        process = subprocess.run(
            [*with_limit, sys.executable, "-m", "launch.train", *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert process.returncode == 1
        assert message in process.stderr
        assert "Traceback" not in process.stderr, process.stderr
        assert sound_steps(tmp_path) == steps
    assert program("train", *arguments).returncode == 0
    assert sound_steps(tmp_path)[-1] > steps[-1]
