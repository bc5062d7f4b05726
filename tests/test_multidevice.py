"""Runs `tests/multidevice/` in a process of its own, with simulated devices."""

import os
import pathlib
import subprocess
import sys

import pytest

FOLDER = pathlib.Path(__file__).parent / "multidevice"
DEVICES = 4


# Each test of the folder has its own limit.
@pytest.mark.timeout(1_200)
def test_on_simulated_devices():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={DEVICES}"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", str(FOLDER)],
        env=os.environ | {"XLA_FLAGS": flags.strip(), "LINSEQREC_MULTIDEVICE": "1"},
        cwd=FOLDER.parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
