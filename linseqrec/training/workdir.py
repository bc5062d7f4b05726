"""The files of a run's workdir: how a run writes and checks them, and how programs read them."""

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import jax

from linseqrec.config import Experiment
from linseqrec.config_fields import ConfigError, differences, flatten
from linseqrec.config_json import from_json, to_json
from linseqrec.data.card import differing_data
from linseqrec.data.source import Source, load_source
from linseqrec.errors import FileError, UserError
from linseqrec.files import (
    check_form,
    parse_json,
    read_json,
    read_records,
    sha256_of_file,
    sha256_of_json,
    write_json,
)
from linseqrec.training.checkpoint import ever_saved, saved_steps
from linseqrec.training.checkpoint_digests import REPLACED, ever_sealed

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
# Forms (`check_form`) of the parts of these files that programs read.
_CARD = {"sha256": {str: str}}
PROTOCOL = {
    "split": str,
    "filter_seen": [str],
    "ties": str,
    "candidates": str,
    "num_items": int,
    "targets": int,
    "users": int,
    "bucket_edges": [float],
}
_VALUES = {str: (float, type(None))}
_BUCKET = {"name": str, "targets": int, "metrics": _VALUES, "standard_errors": _VALUES}
_SUMMARY = {"protocol": PROTOCOL, "metrics": {str: _VALUES}, "buckets": {str: [_BUCKET]}}
_RESULTS = {
    "name": str,
    "split": {"split": str},
    "validation": {str: _SUMMARY},
    "test": {str: _SUMMARY},
}
# Fields that may be edited in config.json when the run has ended: its results stay true.
_EDITABLE = ("name", "note", "data.folder", "evaluation.", "mesh.")
# Seconds for which `lock` tries.
_PATIENCE = 0.5
# The versions in a run's environment. With jax-triton, which is optional, kernels run on GPUs.
_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "polars", "jax-triton")


class WorkdirError(UserError, RuntimeError):
    """A folder is not a run's workdir, or the run in it does not fit the call."""


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
) -> None:
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
        workdir. The function then writes the new configuration to `config.json` and the changes
        to `config_changes.jsonl`.

    Raises:
      WorkdirError: The workdir has a run of another configuration (lists the differences) or on
        other data, or a run that has ended and whose configuration would change. Or its
        checkpoints are gone.
      ConfigError: The configuration of the run in the workdir cannot be read.
      FileError: `config.json` or `card.json` of the run is damaged.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    config_path = workdir / "config.json"
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
        elif changes:
            _append_json(workdir / "config_changes.jsonl", changes)
            write_json(config_path, to_json(experiment))
    else:
        if config_path.exists():
            _clear_other_start(workdir, experiment, card)
        write_json(workdir / "card.json", card)
        write_json(config_path, to_json(experiment))
    _record_environment(workdir, environment(experiment))


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


def check_experiment(
    workdir: Path, experiment: Experiment, *, allowed_changes: Collection[str] = ()
) -> dict[str, str]:
    """The allowed differences between a configuration and that of the run in a workdir.

    Args:
      workdir: The run's folder.
      experiment: The configuration.
      allowed_changes: Fields, by dotted name, that may differ; the data set's folder always may.

    Returns:
      A line of text for each field that differs, by field.

    Raises:
      WorkdirError: A field differs that is not allowed to (lists the differences), or a field in
        `allowed_changes` does not exist.
      ConfigError: The configuration in the workdir cannot be read.
    """
    previous = read_experiment(workdir)
    changes = differences(previous, experiment)
    # An allowed field need not differ. A command that changed a field has to work a second time,
    # and `config.json` has the new value by then.
    fields = flatten(previous).keys() | flatten(experiment).keys()
    if unknown := sorted(set(allowed_changes) - fields):
        raise WorkdirError(
            f"--allow_config_change={','.join(unknown)}: the experiment has no such field; give "
            "dotted names, such as training.num_epochs"
        )
    # The digests tell whether the data are the same (`check_data`), wherever they are now.
    allowed = {*allowed_changes, "data.folder"}
    forbidden = [line for field, line in changes.items() if field not in allowed]
    if forbidden:
        choices = "choose another --workdir, or set these fields back"
        if not (workdir / "results.json").exists():
            choices += ", or allow the change with --allow_config_change=FIELD,FIELD"
        raise WorkdirError(
            f"{workdir} holds a run of another configuration: {choices}\n  "
            + "\n  ".join(forbidden)
        )
    return changes


def check_data(workdir: Path, card: dict[str, Any]) -> None:
    """Raises an error if the run in a workdir was started on another data set.

    Args:
      workdir: The run's folder.
      card: The card of the data set.

    Raises:
      WorkdirError: The data differ; names the parts that do (`card.differing_data`).
    """
    if differing_parts := differing_data(card, read_card(workdir)):
        raise WorkdirError(
            f"{workdir} holds a run on other data ({', '.join(differing_parts)} differ): use the "
            "data set that the run was started on, or choose another --workdir"
        )


def load_data(workdir: Path, folder: str = "") -> Source:
    """The data set that the run in a workdir was started on.

    Args:
      workdir: The run's folder.
      folder: The dataset folder; empty for the one in the run's configuration.

    Raises:
      WorkdirError: The folder is not the workdir of a run, the data differ from the run's, or the
        configured dataset folder does not exist. Also if `folder` is set for a run on a generated
        world.
      DatasetError: The folder is not a dataset folder, or is damaged.
    """
    config = read_experiment(workdir).data
    if folder and not config.folder:
        raise WorkdirError(
            f"--data={folder}: {workdir} holds a run on the generated world {config.world!r}, "
            "which has no folder: leave out --data"
        )
    if config.folder and not folder and not Path(config.folder).exists():
        raise WorkdirError(
            f"{workdir} holds a run on the data set in {config.folder}, but that folder does not "
            f"exist (current folder: {Path.cwd()}): give its new place with --data=FOLDER"
        )
    source = load_source(dataclasses.replace(config, folder=folder or config.folder))
    check_data(workdir, source.dataset.card)
    return source


def read_card(workdir: Path, form: Mapping[str, Any] = _CARD) -> dict[str, Any]:
    """The card of the data set that the run in a workdir was started on.

    Args:
      workdir: The run's folder.
      form: What the card must hold besides its digests, as `check_form` takes it.

    Raises:
      WorkdirError: There is no `card.json`, or it has changed since the run ended.
      FileError: The file is damaged.
    """
    path = workdir / "card.json"
    if not os.path.lexists(path):
        raise WorkdirError(f"no card.json in {workdir}: it is not the workdir of a run")
    card = read_json(path, {**_CARD, **form})
    if (sealed := _sealed(workdir)) and sealed["sha256"].get("card.json") != sha256_of_file(path):
        raise WorkdirError(f"{path} has changed since the run ended: put the file back")
    return card


def read_experiment(workdir: Path) -> Experiment:
    """The configuration of the run in a workdir.

    Raises:
      WorkdirError: There is no `config.json`, or it has changed since the run ended in a field that
        the results depend on.
      ConfigError: The file is of another version, or names a class that does not exist.
      FileError: The file is damaged.
    """
    path = workdir / "config.json"
    if not os.path.lexists(path):
        raise WorkdirError(f"no config.json in {workdir}: it is not the workdir of a run")
    saved = read_json(path, dict)
    try:
        experiment = from_json(saved, Experiment)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    if sealed := _sealed(workdir):
        before, now = _leaves(sealed["config"]), _leaves(saved)
        changed = [
            f"{name}: {before.get(name, '(absent)')!r} -> {now.get(name, '(absent)')!r}"
            for name in dict.fromkeys([*before, *now])
            if before.get(name) != now.get(name) and not name.startswith(_EDITABLE)
        ]
        if changed:
            raise WorkdirError(
                f"{path} has changed since the run ended: set these fields back\n  "
                + "\n  ".join(changed)
            )
    return experiment


def _leaves(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values in a configuration's JSON by dotted name."""
    leaves: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            leaves |= _leaves(value, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = value
    return leaves


def read_results(workdir: Path) -> dict[str, Any]:
    """The `results.json` of a run that has ended.

    Raises:
      FileError: The file cannot be read, is damaged, or is not what the run wrote, by the digest in
        it. A file of an earlier version has no digest: it has no field `config` either.
    """
    path = workdir / "results.json"
    results = read_json(path, _RESULTS)
    if "config" in results or "sha256" in results:
        try:
            check_form(results, {"config": dict, "sha256": {"results.json": str, str: str}})
        except ValueError as error:
            raise FileError(f"{path} is damaged: {error}") from error
        if results["sha256"]["results.json"] != digest_of_results(results):
            raise FileError(
                f"{path} is not what the run wrote: it was edited or is damaged. Put the file "
                "back, or remove it and run launch.train again: it then writes the file anew"
            )
    for split in ("validation", "test"):
        if results["name"] not in results[split]:
            raise FileError(f"{path} is damaged: {split} has no {results['name']!r}")
    return results


def digest_of_results(results: Mapping[str, Any]) -> str:
    """The digest of a run's results, which stands in them."""
    own = {"sha256": {**results["sha256"], "results.json": ""}}
    return sha256_of_json({**results, **own})


def check_sealed(workdir: Path, name: str, results: Mapping[str, Any]) -> None:
    """Raises an error if a file of a run is not the one that its results were written with.

    Args:
      workdir: The run's folder.
      name: The file's path in the folder.
      results: What `read_results` returned. Results of an earlier version have no digests.

    Raises:
      FileError: The file has changed, or is missing.
    """
    if "sha256" not in results:
        return
    path = workdir / name
    try:
        digest = sha256_of_file(path)
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror}") from error
    if results["sha256"].get(name) != digest:
        raise FileError(f"{path} has changed since the run ended: put it back as it was")


def _sealed(workdir: Path) -> dict[str, Any] | None:
    """The results of a run that has ended, if they have digests; None also if they are damaged.

    The callers read the configuration or the card alone, so damage is no error here.
    """
    try:
        results = read_results(workdir)
    except FileError:
        return None
    return results if "sha256" in results else None


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


def read_metrics(workdir: Path) -> Iterator[dict[str, float]]:
    """The records of `metrics.jsonl`, in order (see `files.read_records`)."""
    return read_records(workdir / "metrics.jsonl")
