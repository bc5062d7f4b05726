"""How every program starts: quiet libraries, and errors that say what to do instead of a trace."""

import ctypes
import errno
import importlib
import importlib.util
import os
import platform
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import jax
from absl import app, flags, logging

from launch.flags import split_overrides
from linseqrec.errors import UserError
from linseqrec.training.preemption import EXIT_CODE, Preempted

_IMPORT = flags.DEFINE_list("import", [], "Modules that hold models of your own, of runs to open.")
_FOR_THE_USER = (UserError, app.UsageError)
_CACHE_BYTES = 4 * 2**30
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def run_program(main: Callable[[list[str]], None], *, keep_freed_memory: bool = True) -> None:
    """Parses flags and runs `main`; an error that the user can mend ends in one line and code 1.

    Args:
      main: Given the arguments that are no flags: the program's name alone.
      keep_freed_memory: Whether glibc keeps what is freed, which makes training on a CPU faster; on
        an accelerator it never does.
    """
    _admit_cpu()
    if keep_freed_memory and _runs_on_cpu():
        _keep_freed_memory()
    app.run(lambda argv: _run(main, argv), flags_parser=_parse_flags)


def cache_compilations() -> None:
    """Keeps compiled programs for all runs of this user on this machine.

    They stand in `~/.cache/linseqrec/HOST` (`$XDG_CACHE_HOME` for `~/.cache`), which nobody else
    may read or write: they are native code. The least recently used ones go from 4 GiB on. Several
    processes of one run must all find a program or none, so that they keep none here.
    `JAX_COMPILATION_CACHE_DIR`, where it is set, is used instead, by several processes too.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        if jax.process_count() > 1:
            return
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        # Another machine of the same home may have another processor.
        folder = home / "linseqrec" / platform.node()
        try:
            folder.mkdir(0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)  # fails, as it should, where somebody else made it
        except OSError:
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_compilation_cache_max_size", _CACHE_BYTES)
    # Without these, what compiled in under a second, most of a small run, is not kept.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _admit_cpu() -> None:
    """Makes JAX's CPU a device, too, where `JAX_PLATFORMS` names accelerators alone.

    A model that is divided over devices is made in the host's memory.
    """
    platforms = jax.config.jax_platforms  # type: ignore[attr-defined]
    if platforms and "cpu" not in platforms.split(","):
        jax.config.update("jax_platforms", f"{platforms},cpu")


def _runs_on_cpu() -> bool:
    """Whether JAX will have no accelerator; starts no backend, which must not be up yet."""
    platforms = jax.config.jax_platforms  # type: ignore[attr-defined]
    if platforms:
        return platforms.split(",")[0] == "cpu"
    return not entry_points(group="jax_plugins") and importlib.util.find_spec("libtpu") is None


def _keep_freed_memory() -> None:
    """Has glibc keep freed memory instead of handing it back to the system.

    XLA:CPU allocates a step's temporaries anew in every step. Above 32 MB glibc maps and unmaps
    them each time, and the page faults cost as much as the arithmetic: a RecGRELA step of 3,200
    events took 288 ms so, and 155 to 209 ms with this.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return
    trim_threshold, mmap_max, arena_max = -1, -4, -8
    libc.mallopt(trim_threshold, 2**31 - 1)
    libc.mallopt(mmap_max, 0)
    libc.mallopt(arena_max, 1)


def _run(main: Callable[[list[str]], None], argv: list[str]) -> None:
    # Orbax warns of what was asked for (a checkpoint opened read-only), and logs each error that it
    # raises as well, with its trace.
    logging.set_verbosity(logging.FATAL)
    try:
        if len(argv) > 1:
            raise app.UsageError(f"not a flag: {' '.join(argv[1:])}")
        for module in _IMPORT.value:
            try:
                importlib.import_module(module)
            except ImportError as error:
                raise app.UsageError(f"--import={module}: {error}") from error
        main(argv)
    except _FOR_THE_USER as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        sys.exit(f"error: {error}; make room and run the same command again")
    except Preempted as preempted:
        print(f"{preempted}; the same command goes on", file=sys.stderr)
        sys.exit(EXIT_CODE)


def _parse_flags(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(split_overrides(argv))
    except (flags.Error, *_FOR_THE_USER) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
