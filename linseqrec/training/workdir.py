"""A run's workdir: who may use it, and what a start checks and writes there."""

import contextlib
import errno
import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, TextIO

import jax

from linseqrec.config import Experiment
from linseqrec.config_fields import ConfigError, differences
from linseqrec.config_json import to_json
from linseqrec.errors import FileError, WorkdirError
from linseqrec.files import check_form, parse_json, write_json
from linseqrec.training.checkpoint import ever_saved, saved_steps
from linseqrec.training.checkpoint_digests import REPLACED, ever_sealed
from linseqrec.training.saved_run import check_data, check_experiment, read_experiment

# Besides config.json and card.json, a run writes these before its first checkpoint.
_RECORDS = (
    "metrics.jsonl",
    "speed.jsonl",
    "environments.jsonl",
    "config_changes.jsonl",
    "budget.json",
    "wandb_id.json",
)
_RECORD_FOLDERS = ("tensorboard", "profile")
# Seconds for which `lock` tries.
_PATIENCE = 0.5
# The versions in a run's environment. With jax-triton, which is optional, kernels run on GPUs.
_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "polars", "jax-triton")


@contextlib.contextmanager
def lock(workdir: Path) -> Iterator[None]:
    """Locks a workdir for this process until the context ends.

    The operating system releases the lock when the process ends, even if it is killed.

    Prints a warning if the file system has no locks.

    Raises:
      WorkdirError: Another process has locked the workdir, or it is a dataset folder.
    """
    if (workdir / "offsets.npy").exists():
        raise WorkdirError(f"{workdir} is a dataset folder: choose another --workdir")
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / "lock").open("a+", errors="replace") as file:
        try:
            _lock(file)
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                _notice(
                    f"{workdir}: this file system has no locks: make sure that no other process "
                    "trains in this folder"
                )
                yield
                return
            if not isinstance(error, BlockingIOError):
                raise
            file.seek(0)
            raise WorkdirError(
                f"{workdir} is in use by {file.read().strip() or 'another process'}: wait for it, "
                "stop it, or choose another --workdir"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield


def _lock(file: TextIO) -> None:
    """Locks a file for this process alone.

    Raises:
      OSError: The file system has no locks. BlockingIOError: Another process has locked the file.
    """
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # It may be `is_locked`, which locks the file for a moment.
            if time.monotonic() > deadline:
                raise
            time.sleep(_PATIENCE / 20)


def is_locked(workdir: Path) -> bool:
    """Whether a process trains in a workdir now; False also where the file system has no locks."""
    try:
        with (workdir / "lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    return False


def claim(
    workdir: Path,
    experiment: Experiment,
    card: dict[str, Any],
    *,
    allowed_changes: Collection[str] = (),
) -> dict[str, str]:
    """Prepares a workdir for a new run, or checks that the run in it can be continued.

    In a new workdir the function writes `config.json` and `card.json`. If the workdir already has a
    checkpoint or results, its configuration and data must be those of the arguments. A start that
    failed before its first checkpoint does not count as a run. If it had another configuration or
    other data, the function prints the differences and removes its records.

    A run whose checkpoints were deleted does not start again from the beginning: that is an error.

    The function appends the versions, devices and compute dtype to `environments.jsonl` and prints
    what changed since the last start. Such a change is not an error.

    Args:
      workdir: The run's folder, locked (`lock`). The function creates it if it does not exist.
      experiment: The configuration.
      card: The card of the data set.
      allowed_changes: Fields, by dotted name, that may differ from the configuration in the
        workdir.

    Returns:
      A line of text for each field that differs. Give them to `record_changes` when it is sure that
      the run can go on with them.

    Raises:
      WorkdirError: The workdir has a run of another configuration (lists the differences) or on
        other data, or a run that has ended and whose configuration would change. Or its
        checkpoints are gone.
      ConfigError: The configuration of the run in the workdir cannot be read.
      FileError: `config.json` or `card.json` of the run is damaged.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    config_path, changes = workdir / "config.json", dict[str, str]()
    if has_begun(workdir):
        changes = check_experiment(workdir, experiment, allowed_changes=allowed_changes)
        check_data(workdir, card)
        _check_checkpoints_exist(workdir)
        if (workdir / "results.json").exists():
            changes.pop("data.folder", None)
            if changes:
                raise WorkdirError(
                    f"the run in {workdir} has ended and has results on the test split, so its "
                    "configuration cannot change: train in another --workdir\n  "
                    + "\n  ".join(changes.values())
                )
    else:
        if config_path.exists():
            _clear_other_start(workdir, experiment, card)
        write_json(workdir / "card.json", card)
        write_json(config_path, to_json(experiment))
    _record_environment(workdir, environment(experiment))
    return changes


def record_changes(workdir: Path, experiment: Experiment, changes: dict[str, str]) -> None:
    """Replaces the configuration in a workdir, and appends the changes to `config_changes.jsonl`.

    Args:
      workdir: The run's folder, locked.
      experiment: The new configuration.
      changes: What `claim` returned; if it is empty, nothing is written.
    """
    if changes:
        _append_json(workdir / "config_changes.jsonl", changes)
        write_json(workdir / "config.json", to_json(experiment))


def has_begun(workdir: Path) -> bool:
    """Whether the run in a workdir has saved a checkpoint or results."""
    return (workdir / "results.json").exists() or ever_saved(workdir / "checkpoints")


def _check_checkpoints_exist(workdir: Path) -> None:
    """Refuses a run whose checkpoints were deleted: it would train again from the beginning."""
    folder = workdir / "checkpoints"
    # The next to open the folder puts a replaced one back.
    if saved_steps(folder) or saved_steps(folder / REPLACED):
        return
    if (workdir / "results.json").exists():
        raise WorkdirError(
            f"the run in {workdir} has ended, but {folder} has no checkpoint: put the folder back, "
            "or choose another --workdir to train again. launch.report needs no checkpoint"
        )
    if ever_sealed(folder):
        raise WorkdirError(
            f"the run in {workdir} has saved checkpoints, but {folder} has none left: put them "
            "back, or choose another --workdir to train from the beginning"
        )


def _clear_other_start(workdir: Path, experiment: Experiment, card: dict[str, Any]) -> None:
    """Removes the records of a start without a checkpoint if it had other settings or data."""
    try:
        differing = list(differences(read_experiment(workdir), experiment).values())
    except (ConfigError, FileError) as error:
        differing = [str(error)]
    try:
        check_data(workdir, card)
    except FileError as error:
        differing.append(str(error))
    except WorkdirError:
        differing.append("other data")
    if not differing:
        return
    notice = f"{workdir}: this run replaces an earlier start that saved no checkpoint"
    _notice("\n  ".join([notice, *differing]))
    for name in _RECORDS:
        (workdir / name).unlink(missing_ok=True)
    for name in _RECORD_FOLDERS:
        shutil.rmtree(workdir / name, ignore_errors=True)


def _record_environment(workdir: Path, current: dict[str, Any]) -> None:
    """Appends this process's environment to a file if it differs from the last one there."""
    path = workdir / "environments.jsonl"
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        lines = []
    except OSError as error:
        _notice(f"{path} cannot be read ({error.strerror}); this start is not recorded")
        return
    if lines:
        try:
            previous = parse_json(lines[-1])
            check_form(previous, dict)
        except ValueError as error:
            # The file only informs, so the run goes on.
            _notice(f"{path}: its last line is damaged ({error}); what changed since is not known")
            previous = None
        if previous == current:
            return
        for key in current if previous else ():
            # An earlier version of the library wrote fewer.
            if key in previous and previous[key] != current[key]:
                _notice(
                    f"the run continues with another {key}: {previous.get(key)} -> {current[key]}"
                )
    _append_json(path, current)


def _append_json(path: Path, value: Any) -> None:
    """Appends a line. A killed process may have left the last one without its end."""
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(value).encode() + b"\n")


def _notice(message: str) -> None:
    print(message, file=sys.stderr)


def environment(experiment: Experiment) -> dict[str, Any]:
    """The versions, the devices, the git revision and the compute dtype of a result."""
    from importlib.metadata import PackageNotFoundError, version

    packages = {}
    for name in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            packages[name] = version(name)
    device = jax.devices()[0]
    return {
        "git": _revision(Path(__file__).parents[2]),
        "python": platform.python_version(),
        "packages": packages,
        "device": f"{jax.device_count()} x {device.device_kind}",
        "cpu_count": os.cpu_count(),
        "compute_dtype": experiment.model.compute_dtype.name,
    }


def _revision(root: Path) -> str | None:
    """The git revision of a checkout; None where `root` is none."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    try:
        # Installed into an environment, the library lies within a repository of its user's.
        if Path(git("rev-parse", "--show-toplevel") or "/").resolve() != root.resolve():
            return None
        return git("describe", "--always", "--dirty", "--abbrev=12") or None
    except OSError:  # Git is not installed.
        return None
