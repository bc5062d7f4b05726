"""The files of a run's workdir: how a run writes and checks them, and how programs read them."""

import contextlib
import dataclasses
import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import jax

from linseqrec.config import Experiment
from linseqrec.config_fields import ConfigError, differences, flatten, from_json, to_json
from linseqrec.data.card import differing_data
from linseqrec.data.source import Source, load_source
from linseqrec.errors import UserError
from linseqrec.files import write_json
from linseqrec.training.checkpoint import ever_saved

# Besides config.json and card.json, a run writes these before its first checkpoint.
_RECORDS = (
    "metrics.jsonl",
    "speed.jsonl",
    "environments.jsonl",
    "config_changes.jsonl",
    "wandb_id.json",
)
_RECORD_FOLDERS = ("tensorboard", "profile")


class WorkdirError(UserError, RuntimeError):
    """A folder is not a run's workdir, or the run in it does not fit the call."""


@contextlib.contextmanager
def lock(workdir: Path) -> Iterator[None]:
    """Locks a workdir for this process until the context ends.

    The operating system releases the lock when the process ends, even if it is killed.

    Raises:
      WorkdirError: Another process has locked the workdir.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise WorkdirError(
                f"{workdir} is in use by {file.read().strip() or 'another process'}: wait for it, "
                "stop it, or choose another --workdir"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield


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

    The function appends the versions and devices to `environments.jsonl` and prints what changed
    since the last start. Such a change is not an error.

    Args:
      workdir: The run's folder, locked (`lock`). The function creates it if it does not exist.
      experiment: The configuration.
      card: The card of the data set.
      allowed_changes: Fields, by dotted name, that may differ from the configuration in the
        workdir. The function then writes the new configuration to `config.json` and the changes
        to `config_changes.jsonl`.

    Raises:
      WorkdirError: The workdir has a run of another configuration (lists the differences) or on
        other data, or a run that has ended and whose configuration would change.
      ConfigError: The configuration of the run in the workdir cannot be read.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    config_path = workdir / "config.json"
    if has_begun(workdir):
        changes = check_experiment(workdir, experiment, allowed_changes=allowed_changes)
        check_data(workdir, card)
        if changes:
            if (workdir / "results.json").exists():
                raise WorkdirError(
                    f"the run in {workdir} has ended and has results on the test split, so its "
                    "configuration cannot change: train in another --workdir\n  "
                    + "\n  ".join(changes.values())
                )
            _append_json(workdir / "config_changes.jsonl", changes)
            write_json(config_path, to_json(experiment))
    else:
        if config_path.exists():
            _clear_other_start(workdir, experiment, card)
        write_json(workdir / "card.json", card)
        write_json(config_path, to_json(experiment))
    _record_environment(workdir)


def has_begun(workdir: Path) -> bool:
    """Whether the run in a workdir has saved a checkpoint or results."""
    return (workdir / "results.json").exists() or ever_saved(workdir / "checkpoints")


def _clear_other_start(workdir: Path, experiment: Experiment, card: dict[str, Any]) -> None:
    """Removes the records of a start without a checkpoint if it had other settings or data."""
    try:
        differing = list(differences(read_experiment(workdir), experiment).values())
    except ConfigError as error:
        differing = [str(error)]
    try:
        check_data(workdir, card)
    except WorkdirError:
        differing.append("other data")
    if not differing:
        return
    notice = f"{workdir}: this run replaces an earlier start that saved no checkpoint"
    print("\n  ".join([notice, *differing]), file=sys.stderr)
    for name in _RECORDS:
        (workdir / name).unlink(missing_ok=True)
    for name in _RECORD_FOLDERS:
        shutil.rmtree(workdir / name, ignore_errors=True)


def _record_environment(workdir: Path) -> None:
    """Appends this process's environment to a file if it differs from the last one there."""
    path, current = workdir / "environments.jsonl", environment()
    lines = path.read_text().splitlines() if path.exists() else []
    previous = json.loads(lines[-1]) if lines else current
    if previous == current and lines:
        return
    for key in current:
        if previous[key] != current[key]:
            print(
                f"the run continues with another {key}: {previous[key]} -> {current[key]}",
                file=sys.stderr,
            )
    _append_json(path, current)


def _append_json(path: Path, value: Any) -> None:
    with path.open("a") as file:
        file.write(json.dumps(value) + "\n")


def check_experiment(
    workdir: Path, experiment: Experiment, *, allowed_changes: Collection[str] = ()
) -> dict[str, str]:
    """The allowed differences between a configuration and that of the run in a workdir.

    Args:
      workdir: The run's folder.
      experiment: The configuration.
      allowed_changes: Fields, by dotted name, that may differ.

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
    forbidden = [line for field, line in changes.items() if field not in allowed_changes]
    if forbidden:
        raise WorkdirError(
            f"{workdir} holds a run of another configuration: choose another --workdir, set these "
            "fields back, or allow the change with --allow_config_change=FIELD,FIELD\n  "
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


def read_card(workdir: Path) -> dict[str, Any]:
    """The card of the data set that the run in a workdir was started on.

    Raises:
      WorkdirError: There is no `card.json`.
    """
    path = workdir / "card.json"
    if not path.exists():
        raise WorkdirError(f"no card.json in {workdir}: it is not the workdir of a run")
    return json.loads(path.read_text())


def read_experiment(workdir: Path) -> Experiment:
    """The configuration of the run in a workdir.

    Raises:
      WorkdirError: There is no `config.json`.
      ConfigError: The file is of another version, or names a class that does not exist.
    """
    path = workdir / "config.json"
    if not path.exists():
        raise WorkdirError(f"no config.json in {workdir}: it is not the workdir of a run")
    try:
        return from_json(json.loads(path.read_text()))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def environment() -> dict[str, Any]:
    """The versions, the devices and the git revision that a result may depend on."""
    from importlib.metadata import version

    packages = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "polars")
    root = Path(__file__).parents[2]
    revision = subprocess.run(
        ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    device = jax.devices()[0]
    return {
        "git": revision or None,
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "device": f"{jax.device_count()} x {device.device_kind}",
        "cpu_count": os.cpu_count(),
    }


def read_metrics(workdir: Path) -> Iterator[dict[str, float]]:
    """The records of `metrics.jsonl`, in order (see `read_records`)."""
    return read_records(workdir / "metrics.jsonl")


def read_records(path: Path) -> Iterator[dict[str, float]]:
    """The records of a JSON-lines file, in order; none if there is no file.

    Leaves out an incomplete last line, which a killed process may have written.
    """
    if not path.exists():
        return
    for line in path.read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            yield json.loads(line)
