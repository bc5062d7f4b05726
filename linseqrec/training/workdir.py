"""The workdir: what a run leaves on disk, readable while it runs and after."""

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
from linseqrec.config_checks import ConfigError
from linseqrec.config_fields import differences, flatten, from_json, to_json
from linseqrec.data.card import differing_data
from linseqrec.data.source import Source, load_source
from linseqrec.errors import UserError
from linseqrec.files import write_json
from linseqrec.training.checkpoint import ever_saved

# What a start leaves before its first checkpoint, beside `config.json` and `card.json`.
_RECORDS = (
    "metrics.jsonl",
    "speed.jsonl",
    "environments.jsonl",
    "config_changes.jsonl",
    "wandb_id.json",
)
_RECORD_FOLDERS = ("tensorboard", "profile")


class WorkdirError(UserError, RuntimeError):
    """A workdir that belongs to another run, or to none."""


@contextlib.contextmanager
def lock(workdir: Path) -> Iterator[None]:
    """Holds a workdir for one process; the system lets go of it however that process ends.

    Raises:
      WorkdirError: If another process holds it.
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
    """Writes `config.json` and `card.json`, or checks that they are this run's.

    Where the run goes on under other versions, or on other devices, than the time before, it says
    so and goes on; `environments.jsonl` records them all.

    A start that failed before its first checkpoint has left nothing to go on with: where it was of
    another configuration or on other data, it says so, and the folder is the new run's.

    Args:
      workdir: The run's folder, locked; made if need be.
      experiment: The configuration.
      card: The data set's.
      allowed_changes: Fields, dotted, that may differ from the configuration that the run was
        started with; `config.json` then holds the new one, and `config_changes.jsonl` what changed.

    Raises:
      WorkdirError: If the workdir holds what was trained with another configuration (with the
        differences) or on other data, or its run has ended and would change.
      ConfigError: If the configuration of what it holds cannot be read.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    config_path = workdir / "config.json"
    if has_begun(workdir):
        changes = check_experiment(workdir, experiment, allowed_changes=allowed_changes)
        check_data(workdir, card)
        if changes:
            if (workdir / "results.json").exists():
                raise WorkdirError(
                    f"the run in {workdir} has ended, and its test split has been read: train with "
                    "other values in another --workdir\n  " + "\n  ".join(changes.values())
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
    """Whether a workdir holds what its run goes on with: a checkpoint, or results."""
    return (workdir / "results.json").exists() or ever_saved(workdir / "checkpoints")


def _clear_other_start(workdir: Path, experiment: Experiment, card: dict[str, Any]) -> None:
    """Removes the records of a start that saved nothing, where it was another run's."""
    try:
        other = list(differences(read_experiment(workdir), experiment).values())
    except ConfigError as error:
        other = [str(error)]
    try:
        check_data(workdir, card)
    except WorkdirError:
        other.append("other data")
    if not other:
        return
    said = f"{workdir}: the start before saved no checkpoint, and this one takes its place"
    print("\n  ".join([said, *other]), file=sys.stderr)
    for name in _RECORDS:
        (workdir / name).unlink(missing_ok=True)
    for name in _RECORD_FOLDERS:
        shutil.rmtree(workdir / name, ignore_errors=True)


def _record_environment(workdir: Path) -> None:
    path, now = workdir / "environments.jsonl", environment()
    lines = path.read_text().splitlines() if path.exists() else []
    before = json.loads(lines[-1]) if lines else now
    if before == now and lines:
        return
    for key in now:
        if before[key] != now[key]:
            print(f"goes on with another {key}: {before[key]} -> {now[key]}", file=sys.stderr)
    _append_json(path, now)


def _append_json(path: Path, value: Any) -> None:
    with path.open("a") as file:
        file.write(json.dumps(value) + "\n")


def check_experiment(
    workdir: Path, experiment: Experiment, *, allowed_changes: Collection[str] = ()
) -> dict[str, str]:
    """Checks that a configuration is the one that a workdir's run was started with.

    Args:
      workdir: The run's folder.
      experiment: The configuration.
      allowed_changes: Fields, dotted, that may differ.

    Returns:
      What differs, by field: a line each.

    Raises:
      WorkdirError: If another field differs (with the differences), or an allowed one does not
        exist.
    """
    before = read_experiment(workdir)
    changes = differences(before, experiment)
    # One that does not differ is no error: the same command goes on with a change made before.
    known = flatten(before).keys() | flatten(experiment).keys()
    if unknown := sorted(set(allowed_changes) - known):
        raise WorkdirError(f"allowed to change, but no field: {', '.join(unknown)}")
    forbidden = [line for field, line in changes.items() if field not in allowed_changes]
    if forbidden:
        raise WorkdirError(
            f"{workdir} holds a run of another configuration: change --workdir, undo, or name "
            "in --allow_config_change\n  " + "\n  ".join(forbidden)
        )
    return changes


def check_data(workdir: Path, card: dict[str, Any]) -> None:
    """Checks that data are those that a workdir's run was started on.

    Raises:
      WorkdirError: If they differ (`card.differing_data`), with what does.
    """
    if differing := differing_data(card, read_card(workdir)):
        raise WorkdirError(
            f"{workdir} holds a run on other data ({', '.join(differing)} differ): use the data "
            "set that it was started on, or another --workdir"
        )


def load_data(workdir: Path, folder: str = "") -> Source:
    """The events that a workdir's run was started on.

    Args:
      workdir: The run's folder.
      folder: The dataset folder; empty: where the run's configuration says.

    Raises:
      WorkdirError: If the workdir is no run's, the data are others, or are no longer where the
        configuration says; or a folder is given to a run on a generated world.
      DatasetError: If the folder is no dataset folder, or damaged.
    """
    config = read_experiment(workdir).data
    if folder and not config.folder:
        raise WorkdirError(
            f"{workdir} holds a run on the generated world {config.world!r}, which has no folder: "
            "leave out --data"
        )
    if config.folder and not folder and not Path(config.folder).exists():
        raise WorkdirError(
            f"{workdir} holds a run on the data set in {config.folder}, which is not there (seen "
            f"from {Path.cwd()}): say where it is now by --data=FOLDER"
        )
    source = load_source(dataclasses.replace(config, folder=folder or config.folder))
    check_data(workdir, source.dataset.card)
    return source


def read_card(workdir: Path) -> dict[str, Any]:
    """What is known of the data that a workdir's run was started on.

    Raises:
      WorkdirError: If there is no card.
    """
    path = workdir / "card.json"
    if not path.exists():
        raise WorkdirError(f"no card.json in {workdir}: it is not the workdir of a run")
    return json.loads(path.read_text())


def read_experiment(workdir: Path) -> Experiment:
    """The configuration that a workdir was started with.

    Raises:
      WorkdirError: If there is none.
      ConfigError: If it is of another version, or its classes cannot be found.
    """
    path = workdir / "config.json"
    if not path.exists():
        raise WorkdirError(f"no config.json in {workdir}: it is not the workdir of a run")
    try:
        return from_json(json.loads(path.read_text()))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def environment() -> dict[str, Any]:
    """What a result depends on besides its configuration: versions, device, git revision."""
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
    """The records of `metrics.jsonl` in order, as `read_records` gives them."""
    return read_records(workdir / "metrics.jsonl")


def read_records(path: Path) -> Iterator[dict[str, float]]:
    """The records of a log in order; a last line that a kill cut short is left out."""
    if not path.exists():
        return
    for line in path.read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            yield json.loads(line)
