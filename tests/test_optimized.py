"""Runs the exactness tests as users run the code: at XLA's default optimisation."""

import os
import pathlib
import subprocess
import sys

OPS = pathlib.Path(__file__).parent / "ops"


def test_exact_at_the_default_optimisation():
    variables = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    arguments = ["-m", "pytest", "-n", "0", "-p", "no:cacheprovider", "-m", "optimized", str(OPS)]
    done = subprocess.run(
        [sys.executable, *arguments],
        env=variables | {"LINSEQREC_OPTIMIZED": "1"},
        cwd=OPS.parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
