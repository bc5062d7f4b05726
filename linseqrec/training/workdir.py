"""The workdir: what a run leaves on disk, readable while it runs and after."""

import json
import os
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import tensorboardX

from linseqrec import config as config_lib


class WorkdirError(RuntimeError):
    """A workdir that belongs to another run, or to none."""


def write_json(path: Path, value: Any) -> None:
    """Writes JSON in one move, so that no reader sees half a file."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(partial, path)


def claim(workdir: Path, experiment: config_lib.Experiment, card: dict[str, Any]) -> None:
    """Writes `config.json` and `card.json`, or checks that they are this run's.

    Raises:
      WorkdirError: If the workdir was started with another configuration (with the differences) or
        on other data.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    config_path = workdir / "config.json"
    if config_path.exists():
        changes = config_lib.differences(read_experiment(workdir), experiment)
        if changes:
            raise WorkdirError(
                f"{workdir} holds a run of another configuration: change --workdir, or undo\n  "
                + "\n  ".join(changes)
            )
        check_data(workdir, card)
        return
    write_json(workdir / "card.json", card)
    write_json(config_path, config_lib.to_json(experiment))


def check_data(workdir: Path, card: dict[str, Any]) -> None:
    """Checks that data are those that a workdir's run was started on.

    Raises:
      WorkdirError: If their digests differ.
    """
    before = read_card(workdir)["sha256"]
    arrays = [name for name in before if card["sha256"].get(name) != before[name]]
    if arrays:
        raise WorkdirError(
            f"{workdir} holds a run on other data ({', '.join(arrays)} differ): use the data set "
            "that it was started on, or another --workdir"
        )


def read_card(workdir: Path) -> dict[str, Any]:
    """What is known of the data that a workdir's run was started on.

    Raises:
      WorkdirError: If there is no card.
    """
    path = workdir / "card.json"
    if not path.exists():
        raise WorkdirError(f"no card.json in {workdir}: it is not the workdir of a run")
    return json.loads(path.read_text())


def read_experiment(workdir: Path) -> config_lib.Experiment:
    """The configuration that a workdir was started with.

    Raises:
      WorkdirError: If there is none.
    """
    path = workdir / "config.json"
    if not path.exists():
        raise WorkdirError(f"no config.json in {workdir}: it is not the workdir of a run")
    return config_lib.from_json(json.loads(path.read_text()))


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


class MetricsLog:
    """`metrics.jsonl`, one record a line, mirrored to TensorBoard and, if asked, to W&B.

    Opening it at a step drops the records after that step: a resumed run writes them again.
    """

    def __init__(self, workdir: Path, step: int, *, wandb_project: str = ""):
        """Opens the log.

        Args:
          workdir: The run's folder; its name is the run's in W&B.
          step: Records after it are dropped.
          wandb_project: The project to mirror to; empty for none.

        Raises:
          WorkdirError: If W&B is asked for and not installed.
        """
        self._path = workdir / "metrics.jsonl"
        records = [record for record in read_metrics(workdir) if record["step"] <= step]
        self._path.write_text("".join(json.dumps(record) + "\n" for record in records))
        self._file = self._path.open("a")
        self._board = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)
        self._wandb: Any = None
        if wandb_project:
            try:
                import wandb
            except ImportError as error:
                raise WorkdirError("W&B is not installed: pip install -e '.[wandb]'") from error
            self._wandb = wandb.init(
                project=wandb_project,
                name=workdir.name,
                # A resumed run goes on where it was.
                id=workdir.name,
                resume="allow",
                dir=str(workdir),
                config=json.loads((workdir / "config.json").read_text()),
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=0 if kind is None else 1)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Appends one record, on disk when it returns."""
        self._file.write(json.dumps({"step": step} | metrics) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(metrics, step=step)


def read_metrics(workdir: Path) -> Iterator[dict[str, float]]:
    """The records of `metrics.jsonl` in order; a last line cut short by a kill is left out."""
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return
    for line in path.read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            yield json.loads(line)
