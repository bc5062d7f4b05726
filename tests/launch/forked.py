"""Programs in processes of their own that need not import the libraries again.

A program spends two seconds of a core on importing JAX and its kin: most of what a test of its
flags costs. A server imports them once, and forks a child for each program, with arguments, flags,
output and an exit code of its own. What is ours the child imports itself.
"""

import atexit
import multiprocessing
import os
import pathlib
import runpy
import shutil
import subprocess
import sys
import tempfile

# None of these starts a thread: a fork would lose it. (Importing polars does.)
LIBRARIES = [
    "flax.nnx",
    "grain",
    "jax",
    "matplotlib.pyplot",
    "optax",
    "orbax.checkpoint",
    "tensorboardX",
]
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(LIBRARIES)


class Program:
    """`python -m NAME ARGUMENTS`, begun."""

    def __init__(self, name: str, arguments: list[str], *, cwd: pathlib.Path, env: dict[str, str]):
        self._command = [name, *arguments]
        self._folder = pathlib.Path(tempfile.mkdtemp())
        self._outputs = [self._folder / stream for stream in ("stdout", "stderr")]
        self._process = _SERVER.Process(
            target=_child, args=(self._command, cwd, env, self._outputs)
        )
        self._process.start()

    def runs(self) -> bool:
        return self._process.is_alive()

    def send_signal(self, number: int) -> None:
        """Does nothing where it has ended."""
        if self.runs():
            os.kill(self._process.pid, number)

    def end(self) -> subprocess.CompletedProcess:
        """Waits for its end: its exit code, and what it said."""
        self._process.join()
        said = [path.read_text() if path.exists() else "" for path in self._outputs]
        shutil.rmtree(self._folder)
        return subprocess.CompletedProcess(self._command, self._process.exitcode, *said)


def _child(command, cwd, env, outputs):
    for number, path in enumerate(outputs, start=1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = command
    try:
        runpy.run_module(command[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if not isinstance(end.code, str):
            raise
        print(end.code, file=sys.stderr, flush=True)
        sys.exit(1)
    finally:
        # `multiprocessing` leaves these out.
        atexit._run_exitfuncs()
