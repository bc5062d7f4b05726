"""The start of every program: flags, settings of libraries, and errors in one line."""

import ctypes
import errno
import importlib
import importlib.util
import os
import platform
import re
import select
import signal
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging
from filelock import FileLock

from launch import sigterm
from launch.flags import split_overrides
from linseqrec.errors import UserError
from linseqrec.training.preemption import EXIT_CODE, Preempted

# Errors that the user can correct. A program prints their message without a stack trace.
_USER_ERRORS = (UserError, app.UsageError)
_IMPORT = flags.DEFINE_list("import", [], "Modules that hold models of your own, of runs to open.")
_CACHE_BYTES = 4 * 2**30
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def run_program(main: Callable[[list[str]], None], *, keep_freed_memory: bool = True) -> None:
    """Parses flags and runs `main`. User errors end the program with one line and code 1.

    Args:
      main: The program. Its argument is a list with the program's name.
      keep_freed_memory: Whether glibc keeps freed memory, which makes training on a CPU faster.
        Has no effect on an accelerator.
    """
    sys.unraisablehook = show_unraisable
    _add_cpu_platform()
    if keep_freed_memory and _runs_on_cpu():
        _keep_freed_memory()
    app.run(lambda argv: _run(main, argv), flags_parser=_parse_flags)


def show_unraisable(unraisable: Any) -> None:
    """Prints an unraisable exception, except those of TensorStore after a failed save.

    The failure closes Orbax's event loop. For each other array whose write ends later, TensorStore
    would print that the loop is closed, beside our error in one line.
    """
    if unraisable.object is not None or str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def cache_compilations() -> None:
    """Makes JAX save compiled programs, for all runs of this user on this machine.

    The folder is `~/.cache/linseqrec/HOST`, or `$XDG_CACHE_HOME/linseqrec/HOST`. Only the user can
    read or write it, because its files are native code. JAX deletes the least recently used
    programs if the folder grows beyond 4 GiB.

    A run with several processes does not use this folder: either all of its processes must find a
    program, or none. `JAX_COMPILATION_CACHE_DIR` names another folder, which such runs use too.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        if jax.process_count() > 1:
            return
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        # Machines that share a home folder may have different processors.
        folder = cache / "linseqrec" / platform.node()
        try:
            folder.mkdir(0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)  # fails if the folder belongs to another user
        except OSError:
            return
        _delete_cut_programs(folder)
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_compilation_cache_max_size", _CACHE_BYTES)
    # By default JAX does not save programs that compile in under a second: most of a small run.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _delete_cut_programs(folder: Path) -> None:
    """Deletes the compiled programs whose saving was cut short.

    JAX writes a program's file, then the file of its last use. A kill or a full disk between the
    two leaves a program without the second file, and JAX can save no program beside one.
    """
    try:
        with FileLock(folder / ".lockfile", timeout=10):  # that of JAX
            for program in folder.glob("*-cache"):
                if not program.with_name(f"{program.name.removesuffix('-cache')}-atime").exists():
                    program.unlink(missing_ok=True)
    except OSError:
        return


def _add_cpu_platform() -> None:
    """Adds the CPU to JAX's platforms if `JAX_PLATFORMS` names only accelerators.

    A run creates the parameters of a model that a mesh splits in the host's memory, on the CPU.
    """
    platforms = jax.config.jax_platforms  # type: ignore[attr-defined]
    if platforms and "cpu" not in platforms.split(","):
        jax.config.update("jax_platforms", f"{platforms},cpu")


def _runs_on_cpu() -> bool:
    """Whether JAX will run on the CPU.

    Does not start JAX's backend, because the run's processes may not be connected yet.
    """
    platforms = jax.config.jax_platforms  # type: ignore[attr-defined]
    if platforms:
        return platforms.split(",")[0] == "cpu"
    return not entry_points(group="jax_plugins") and importlib.util.find_spec("libtpu") is None


def _keep_freed_memory() -> None:
    """Makes glibc keep freed memory instead of returning it to the system.

    XLA:CPU allocates the temporary buffers of a step in every step. By default glibc maps and
    unmaps buffers above 32 MB each time, and the page faults cost as much as the computation. A
    RecGRELA step of 3,200 events takes 288 ms by default, and 155 to 209 ms with this setting.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return
    trim_threshold, mmap_max, arena_max = -1, -4, -8
    libc.mallopt(trim_threshold, 2**31 - 1)
    libc.mallopt(mmap_max, 0)
    libc.mallopt(arena_max, 1)


def _run(main: Callable[[list[str]], None], argv: list[str]) -> None:
    # Orbax logs a warning when a checkpoint is opened read-only, and a stack trace for each error
    # that it raises.
    logging.set_verbosity(logging.FATAL)
    try:
        if len(argv) > 1:
            raise app.UsageError(f"not a flag: {' '.join(argv[1:])}; write --NAME=VALUE")
        for module in _IMPORT.value:
            try:
                importlib.import_module(module)
            except ImportError as error:
                raise app.UsageError(
                    f"--import={module}: {error} (is its folder below PYTHONPATH?)"
                ) from error
        main(argv)
        sigterm.ignore()
    except _USER_ERRORS as error:
        sys.exit(f"error: {_printable(str(error))}")
    except BrokenPipeError:
        if _output_is_read():
            raise  # another pipe broke
        # The reader of the output, such as `head`, has ended. Python flushes the output at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        if error.errno in _DISK_FULL:
            sys.exit(f"error: {error}; free some disk space and run the same command again")
        path = error.filename2 or error.filename
        if path is None:
            raise
        sys.exit(f"error: {_printable(str(path))}: {error.strerror}")
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.stdout.flush()
        os._exit(128 + signal.SIGINT)  # A compilation may go on in XLA's threads, as below.
    except Preempted as preempted:
        print(f"{preempted}; run the same command again to continue", file=sys.stderr)
        sigterm.ignore()
        if jax.process_count() == 1:
            # A compilation that was interrupted goes on in XLA's threads, and would crash while
            # Python ends.
            os._exit(EXIT_CODE)
        sys.exit(EXIT_CODE)


def _output_is_read() -> bool:
    """Whether the standard output is no pipe, or a pipe whose reader has not ended."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return not any(event & select.POLLERR for _, event in poll.poll(0))


def _printable(text: str) -> str:
    """A text without characters that a terminal obeys; names in files may hold them."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "?", text)


def _parse_flags(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(split_overrides(argv))
    except (flags.Error, *_USER_ERRORS) as error:
        message = " ".join(str(error).split())
        # What absl says of a flag that is missing, and the values that it puts before our words.
        message = re.sub(r"^flag --(\w+)=None: Flag --\1 must have .*", r"give --\1", message)
        # What absl says of a list that is given a second time (allow_overwrite=False).
        message = re.sub(
            r"^flag --(\w+)=(.*): already defined as .*",
            r"--\1 is given twice, the second time as \2: give it once, with commas between values",
            message,
        )
        sys.exit("error: " + re.sub(r"^flags (\w+=\S* ?)+: ", "", message))
