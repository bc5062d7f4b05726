"""A run whose disk is full says so, keeps its last good checkpoint, and goes on once there is room.

A limit on the size of files stands in for the disk: filling one takes rights that tests have not.
"""

import signal
import subprocess
import sys

from linseqrec.training.checkpoint import Checkpoints
from tests.launch.programs import ROOT, TINY, killed, last_step, program


def sound_steps(folder):
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        return checkpoints.sound_steps()


def test_it_says_so_keeps_what_it_has_and_goes_on(prepared, tmp_path):
    arguments = [*TINY, f"--config.data.folder={prepared}", f"--workdir={tmp_path}"]
    arguments += ["--config.training.num_epochs=2"]
    assert killed(arguments, tmp_path, lambda folder, _: last_step(folder) >= 2, signal.SIGTERM)
    before = sound_steps(tmp_path)
    assert before
    # Not even a line of metrics.jsonl; then enough for that, and too little for a checkpoint.
    for kilobytes_a_file, message in ((0, "make room and run"), (20, "could not be saved in")):
        limited = ["bash", "-c", f'ulimit -f {kilobytes_a_file}; exec "$@"', "-"]
        full = subprocess.run(
            [*limited, sys.executable, "-m", "launch.train", *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert full.returncode == 1
        assert message in full.stderr
        assert "Traceback" not in full.stderr
        assert sound_steps(tmp_path) == before
    assert program("train", *arguments).returncode == 0
    assert sound_steps(tmp_path)[-1] > before[-1]
