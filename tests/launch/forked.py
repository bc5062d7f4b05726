"""Starts programs in separate processes that do not have to import the libraries again.

A program needs two seconds of a core to import JAX and other libraries, which is most of the time
of a test of its flags. Here a server imports the libraries once and forks a child for each program.
The child has its own arguments, flags, output and exit code, and imports the project's modules.
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

# A fork would lose the threads of a library. None of these starts a thread at import; polars does.
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
    """A running `python -m NAME ARGUMENTS`."""

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
        """Sends a signal to the program if it still runs."""
        if self.runs():
            os.kill(self._process.pid, number)

    def end(self) -> subprocess.CompletedProcess:
        """Waits until the program has ended; returns its exit code and output."""
        self._process.join()
        outputs = [path.read_text() if path.exists() else "" for path in self._outputs]
        shutil.rmtree(self._folder)
        return subprocess.CompletedProcess(self._command, self._process.exitcode, *outputs)


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
        # `multiprocessing` does not call the functions that libraries registered with `atexit`.
        atexit._run_exitfuncs()
