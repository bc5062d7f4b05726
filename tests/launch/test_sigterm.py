"""SIGTERM at any moment of a whole run, from its first import to its last figure."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from launch import sigterm
from linseqrec.training.preemption import EXIT_CODE
from tests.launch.programs import ROOT, TINY, program

# For a long test, set LINSEQREC_SIGTERMS=100.
SIGTERMS = int(os.environ.get("LINSEQREC_SIGTERMS", 3))


def start(arguments, folder):
    """Starts a training program, in a process that imports all by itself."""
    command = [sys.executable, "-m", "launch.train", *arguments, f"--workdir={folder}"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def wait_for_handler(process):
    """Waits until the program handles SIGTERM: before, Python itself still starts."""
    status = pathlib.Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        caught = int(status.read_text().partition("SigCgt:")[2].split()[0], 16)
        if caught >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.001)


def outcome(folder):
    """What must not depend on stops: metrics of every step, results and ranks."""
    with np.load(folder / "ranks" / "test.npz") as ranks:
        own = {name: ranks[name].tolist() for name in ranks.files}
    results = json.loads((folder / "results.json").read_text())
    return (folder / "metrics.jsonl").read_bytes(), results["test"], own


@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.timeout(120 * (SIGTERMS + 1))
def test_a_sigterm_at_any_moment_ends_with_75_and_changes_nothing(prepared, tmp_path):
    arguments = [*TINY, "--config.training.num_epochs=1", f"--config.data.folder={prepared}"]
    whole = tmp_path / "whole"
    process = start(arguments, whole)
    wait_for_handler(process)
    begun = time.monotonic()
    process.communicate()
    seconds = time.monotonic() - begun
    assert process.returncode == 0
    generator = random.Random(0)
    for number in range(SIGTERMS):
        # The moments are spread evenly over the run.
        moment = seconds * (number + generator.random()) / SIGTERMS
        folder = tmp_path / str(number)
        process = start(arguments, folder)
        wait_for_handler(process)
        time.sleep(moment)
        process.send_signal(signal.SIGTERM)
        output = process.communicate()[0].decode()
        said = f"SIGTERM after {moment:.2f} of {seconds:.2f} s:\n{output}"
        assert process.returncode in (0, EXIT_CODE), said
        assert "Traceback" not in output, said
        assert (process.returncode == 0) == ("written to" in output), said
        resumed = program("train", *arguments, f"--workdir={folder}")
        assert "written to" in resumed.stdout and resumed.returncode == 0, said
        assert outcome(folder) == outcome(whole), said
        assert len(list((folder / "figures").iterdir())) == 2, said


def test_the_code_is_the_same_before_and_while_the_run_trains():
    assert os.EX_TEMPFAIL == EXIT_CODE
    program = "import os, signal\nfrom launch import sigterm\n{}\nos.kill(os.getpid(), 15)\n"
    for call, code in (("exit_as_preempted", EXIT_CODE), ("ignore", 0)):
        assert hasattr(sigterm, call)
        lines = program.format(f"sigterm.{call}()")
        assert subprocess.run([sys.executable, "-c", lines], cwd=ROOT).returncode == code
