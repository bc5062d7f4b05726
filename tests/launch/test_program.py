"""The settings that every program makes at its start."""

import errno
import os
import re
import signal
import subprocess
import sys
import types

import jax
import pytest

from launch import program
from linseqrec.errors import UserError
from tests.launch.programs import ROOT


@pytest.mark.parametrize(
    ("configured", "expected", "on_cpu"),
    [("cuda", "cuda,cpu", False), ("cuda,cpu", "cuda,cpu", False), ("cpu", "cpu", True)],
)
def test_platforms_include_the_cpu_and_only_cpu_runs_keep_freed_memory(
    configured, expected, on_cpu, monkeypatch
):
    calls = []
    monkeypatch.setattr(program, "_keep_freed_memory", lambda: calls.append(True))
    monkeypatch.setattr(program.app, "run", lambda *_, **__: None)
    # The program sets its own.
    monkeypatch.setattr(program.sys, "unraisablehook", program.sys.unraisablehook)
    original = jax.config.jax_platforms
    jax.config.update("jax_platforms", configured)
    try:
        program.run_program(lambda argv: None)
        assert jax.config.jax_platforms == expected
        assert bool(calls) == on_cpu
    finally:
        jax.config.update("jax_platforms", original)


def fail(error):
    def main(argv):
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("a\x1b[31m name"), "error: a?[31m name"),
        (
            PermissionError(errno.EACCES, "Permission denied", "runs/a"),
            "error: runs/a: Permission denied",
        ),
        (OSError(errno.EROFS, "Read-only file system", "x"), "error: x: Read-only file system"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "free some disk space"),
    ],
)
def test_an_error_that_a_user_can_fix_is_one_line(error, line):
    with pytest.raises(SystemExit, match=re.escape(line)):
        program._run(fail(error), ["program"])


def test_an_error_of_the_system_without_a_file_keeps_its_trace():
    for error in (ConnectionResetError, BrokenPipeError):
        with pytest.raises(error):
            program._run(fail(error(errno.ECONNRESET, "reset")), ["program"])


def test_output_that_nobody_reads_ends_the_program_without_a_trace(trained):
    report = subprocess.Popen(
        [sys.executable, "-m", "launch.report", f"--runs={trained[0]}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    report.stdout.close()
    assert report.stderr.read() == b"" and report.wait() == 128 + signal.SIGPIPE


@pytest.mark.parametrize(
    ("error", "place", "shown"),
    [
        (RuntimeError("Event loop is closed"), None, False),
        (RuntimeError("Event loop is closed"), "an object", True),
        (RuntimeError("something else"), None, True),
    ],
    ids=["of a failed save", "of an object", "another"],
)
def test_late_errors_of_a_failed_save_are_not_printed(error, place, shown, monkeypatch):
    printed = []
    monkeypatch.setattr(program.sys, "__unraisablehook__", printed.append)
    unraisable = types.SimpleNamespace(exc_value=error, object=place)
    program.show_unraisable(unraisable)
    assert printed == [unraisable] * shown


def test_ctrl_c_ends_a_program_in_one_line_and_keeps_its_output():
    lines = """
import os, signal
from launch.program import run_program
def main(argv):
    print("half")
    os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)  # The suite may run in the background.
run_program(main)
"""
    buffered = {name: own for name, own in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [sys.executable, "-c", lines], cwd=ROOT, env=buffered, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "half\n", "stopped\n")
