"""What a run tells while it trains: records on disk, a progress bar, lines on the terminal."""

import contextlib
import json
import secrets
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tensorboardX.summary import scalar
from tqdm import tqdm

from linseqrec.errors import FileError, WorkdirError
from linseqrec.evaluation.result import SELECTION_METRIC, EvaluationResult, selected_by
from linseqrec.files import read_json, read_records, replacing, write_json
from linseqrec.training import distributed
from linseqrec.training.checkpoint import Progress


class TrainingLog(contextlib.ExitStack):
    """The log of a run: of several processes, the first one's alone.

    A context manager: the files are closed, and the bar ends, with it.
    """

    def __init__(
        self,
        folder: Path,
        step: int,
        *,
        name: str,
        num_steps: int,
        steps_per_epoch: int,
        validated: bool = True,
        wandb_project: str = "",
    ):
        """Opens the log.

        Args:
          folder: The run's workdir.
          step: The updates applied so far; later records are dropped, since the run repeats them.
          name: The experiment's name, which stands before the bar.
          num_steps: Length of the run.
          steps_per_epoch: Steps of one pass over the training targets.
          validated: Whether the validation of `step` is done, as in `MetricsLog`.
          wandb_project: The W&B project to mirror metrics to; empty for none.

        Raises:
          WorkdirError: If W&B is asked for and not installed.
        """
        super().__init__()
        self._steps_per_epoch = steps_per_epoch
        self._records: MetricsLog | None = None
        if distributed.is_first():
            self._records = self.enter_context(
                MetricsLog(folder, step, validated=validated, wandb_project=wandb_project)
            )
        if 0 < step < num_steps:
            self._print(f"goes on from step {step:,} of {num_steps:,}")
        self._bar = self.enter_context(
            tqdm(
                total=num_steps,
                initial=step,
                unit="step",
                # None: tqdm draws nothing where there is no terminal.
                disable=None if distributed.is_first() else True,
                desc=name,
            )
        )

    def step(self) -> None:
        """Moves the bar on by a step."""
        self._bar.update()

    def training(self, step: int, metrics: dict[str, float], speed: dict[str, float]) -> None:
        """Records training metrics, and the speed since the last ones.

        Where the bar or the output has no terminal, the method also prints a line.
        """
        self._bar.set_postfix(
            loss=f"{metrics['train/loss']:.3f}",
            events=f"{speed['train/events_per_second']:,.0f}/s",
            refresh=False,
        )
        self._write(step, metrics, speed)
        if self._bar.disable or not sys.stdout.isatty():
            self._print(
                f"step {step} epoch {step / self._steps_per_epoch:.1f} "
                f"loss {metrics['train/loss']:.4f} "
                f"{speed['train/events_per_second']:,.0f} events/s"
            )

    def validation(self, step: int, result: EvaluationResult, progress: Progress) -> None:
        """Records a validation, and prints it on a line."""
        named = {
            f"validation/{name}/{metric}": value
            for name, metrics in result.metrics_by_filter.items()
            for metric, value in metrics.items()
        }
        self._write(step, named)
        scores = ", ".join(
            f"HR@10 {metrics['HR@10']:.4f} NDCG@10 {metrics['NDCG@10']:.4f} (filter_seen={name})"
            for name, metrics in result.metrics_by_filter.items()
        )
        best = f"best step {progress.best_step} by {selected_by(tuple(result.metrics_by_filter))}"
        epoch = step / self._steps_per_epoch
        self._print(f"step {step} epoch {epoch:.1f} validation {scores}; {best}")

    def stopped_early(self, progress: Progress) -> None:
        """Prints that the run ends before its last step, because its patience is spent."""
        self._print(
            f"stopped early at step {progress.validated_step}: {progress.stale} validations "
            f"without a better {SELECTION_METRIC} than that of step {progress.best_step} "
            "(training.patience)"
        )

    def _print(self, line: str) -> None:
        if self._records is not None:
            tqdm.write(line)
            sys.stdout.flush()

    def _write(
        self, step: int, metrics: dict[str, float], speed: dict[str, float] | None = None
    ) -> None:
        if self._records is not None:
            self._records.write(step, {"epoch": step / self._steps_per_epoch} | metrics, speed)


class MetricsLog(contextlib.ExitStack):
    """`metrics.jsonl` and `speed.jsonl`, a record per line, mirrored to TensorBoard and W&B.

    Opening the log at a step drops the records after that step: a resumed run writes them again.
    """

    def __init__(
        self, workdir: Path, step: int, *, validated: bool = True, wandb_project: str = ""
    ):
        """Opens the log.

        Args:
          workdir: The run's folder; its name is the run's in W&B.
          step: Records after it are dropped.
          validated: Whether the validation of `step` is done. If not, its record is dropped too: a
            process logged the validation, and failed before it could save it.
          wandb_project: The project to mirror to; empty for none.

        Raises:
          WorkdirError: If W&B is asked for and not installed.
        """
        super().__init__()
        self._files = {
            name: self.enter_context(_reopen(workdir / f"{name}.jsonl", step, validated))
            for name in ("metrics", "speed")
        }
        self._board = _TensorBoard(workdir / "tensorboard", first_step=step + 1)
        self.callback(self._board.close)
        self._wandb: Any = None
        if wandb_project:
            try:
                import wandb
            except ImportError as error:
                raise WorkdirError("W&B is not installed: pip install -e '.[wandb]'") from error
            self._wandb = wandb.init(
                project=wandb_project,
                name=workdir.name,
                # The id makes a resumed run the same run in W&B, whatever its folder is called.
                id=_wandb_id(workdir),
                resume="allow",
                dir=str(workdir),
                config=json.loads((workdir / "config.json").read_text()),
            )
            self.push(lambda kind, *_: self._wandb.finish(exit_code=0 if kind is None else 1))

    def write(
        self, step: int, metrics: dict[str, float], speed: dict[str, float] | None = None
    ) -> None:
        """Appends one record, on disk when this returns.

        Args:
          step: The updates applied so far.
          metrics: Values by name that are the same if the run is repeated.
          speed: Values by name that are not; they go to `speed.jsonl`.
        """
        speed = speed or {}
        for name, values in (("metrics", metrics), ("speed", speed)):
            if values:
                self._files[name].write(json.dumps({"step": step} | values) + "\n")
                self._files[name].flush()
        self._board.write(step, metrics | speed)
        if self._wandb is not None:
            self._wandb.log(metrics | speed, step=step)


class _TensorBoard:
    """An event file of scalars, each on disk at once.

    tensorboardX's `SummaryWriter` writes from a thread. When that thread has died of a full disk,
    its queue fills and the run waits for it for ever.
    """

    def __init__(self, folder: Path, first_step: int):
        """Opens a new file in `folder`; TensorBoard drops what older files hold from this step."""
        folder.mkdir(parents=True, exist_ok=True)
        self._file = EventsWriter(str(folder / "events"))
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(first_step, session_log=start)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._write(step, summary=scalar(name, value))
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _write(self, step: int, **fields: object) -> None:
        self._file.write_event(event_pb2.Event(wall_time=time.time(), step=step, **fields))


def _wandb_id(workdir: Path) -> str:
    """The run's id in W&B: drawn once, then kept in the workdir."""
    path = workdir / "wandb_id.json"
    if path.exists():
        try:
            return read_json(path, str)
        except FileError as error:
            print(f"{error}; the run goes on as a new run in W&B", file=sys.stderr)
    write_json(path, secrets.token_hex(8))
    return read_json(path, str)


def _reopen(path: Path, step: int, validated: bool) -> TextIO:
    """Opens a log to append to, without the records that the run writes again (`MetricsLog`).

    A log with damaged lines is kept beside it, as `NAME.damaged.jsonl`.
    """
    all_records = list(read_records(path))
    if path.exists() and path.read_bytes().count(b"\n") > len(all_records):
        shutil.copyfile(path, path.with_suffix(".damaged.jsonl"))

    def comes_again(record: Mapping[str, float]) -> bool:
        if record["step"] == step and not validated:
            return any(name.startswith("validation/") for name in record)
        return record["step"] > step

    records = [record for record in all_records if not comes_again(record)]
    with replacing(path) as partial:
        partial.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path.open("a")
