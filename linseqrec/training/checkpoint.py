"""Checkpoints of a run: the best one and the latest two.

A checkpoint contains the training state and the run's progress. Orbax writes it and moves it to its
place when it is complete. `Checkpoints` then seals it with digests (`checkpoint_digests.py`), and
checks them before it loads. A checkpoint without digests is not sound: a process was killed before
it could seal it, or somebody deleted them.
"""

import dataclasses
import functools
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax import nnx
from orbax.checkpoint import checkpoint_managers

from linseqrec.errors import UserError, first_line
from linseqrec.files import check_form
from linseqrec.sharding import named_leaves
from linseqrec.training import (
    checkpoint_arrays,
    checkpoint_digests,
    distributed,
)
from linseqrec.training.item_rows import CatchUpRule
from linseqrec.training.model import FunctionalModel
from linseqrec.training.optimizer import OptimizerConfig, learning_rate, make_optimizer
from linseqrec.training.step import States, TrainState

# Two, so that a run can continue from the other one if one is damaged.
_NUM_LATEST = 2
# Orbax warns of each folder that is opened as we asked, to read only.
_ORBAX_READS_ONLY = "Given directory is read only=%s"
logging.getLogger("absl").addFilter(lambda record: record.msg != _ORBAX_READS_ONLY)


class CheckpointError(UserError, RuntimeError):
    """A checkpoint does not exist, is damaged, could not be saved, or does not fit the model."""


@dataclasses.dataclass(frozen=True)
class Progress:
    """The progress of a run that a checkpoint saves besides the training state.

    Attributes:
      iterator: State of the data iterator.
      validated_step: The last step with a validation.
      best_step: The step with the best validation so far.
      best_metric: The selection metric of `best_step`.
      stale: Number of validations since `best_step`.
      seconds: Wall time of training in seconds, over all starts of the run.
      num_steps: Length of the run in steps, which its learning rate depends on.
      unlogged: Sums of training metrics over the steps since the last log record.
      shapes: For each array that was saved with a mesh's padding, by name: its shape without the
        padding.
    """

    iterator: dict[str, Any]
    validated_step: int = 0
    best_step: int = 0
    best_metric: float = float("-inf")
    stale: int = 0
    seconds: float = 0.0
    num_steps: int = 0
    unlogged: dict[str, float] = dataclasses.field(default_factory=dict)
    shapes: dict[str, Sequence[int]] = dataclasses.field(default_factory=dict)

    def after_validation(self, step: int, metric: float) -> "Progress":
        """The progress after a validation of `step` with the selection metric `metric`."""
        progress = dataclasses.replace(self, validated_step=step, stale=self.stale + 1)
        if metric > self.best_metric:
            return dataclasses.replace(progress, best_step=step, best_metric=metric, stale=0)
        return progress


# A checkpoint of another version may have fewer or more fields, so `progress` reads by name.
_PROGRESS_FIELDS = [field.name for field in dataclasses.fields(Progress)]
_PROGRESS = {"iterator": dict, "best_step": int, "best_metric": float, "stale": int}


def ever_saved(folder: Path) -> bool:
    """Whether a folder of checkpoints has, or ever had, a checkpoint, sound or damaged."""
    places = ("sha256/*.json", "damaged/*", f"{checkpoint_digests.REPLACED}/*", "*")
    traces = (path for place in places for path in folder.glob(place))
    return any(path.name.partition("-")[0].removesuffix(".json").isdecimal() for path in traces)


def saved_steps(folder: Path) -> list[int]:
    """The steps of the checkpoints in a folder, ascending, sound or damaged."""
    steps = [path for path in folder.glob("*") if path.name.isdecimal() and path.is_dir()]
    return sorted(int(path.name) for path in steps)


def newest_progress(folder: Path) -> Path | None:
    """The file of the `Progress` in the newest checkpoint of a folder; None without a checkpoint.

    For readers of a field or two. `Checkpoints.progress` opens the folder, and checks more.
    """
    steps = saved_steps(folder)
    return folder / str(steps[-1]) / "progress" / "metadata" if steps else None


class _Preservation(checkpoint_managers.PreservationPolicy):
    """Keeps the best checkpoint and the latest two.

    Orbax's `BestN` keeps the later of two that are equally good, and `Progress.best_step` is the
    earlier one.
    """

    best_step = 0

    def should_preserve(
        self,
        checkpoints: Sequence[checkpoint_managers.PolicyCheckpointInfo],
        *,
        context: checkpoint_managers.PreservationContext,
    ) -> list[bool]:
        del context
        first_of_latest = len(checkpoints) - _NUM_LATEST
        return [
            index >= first_of_latest or each.step == self.best_step
            for index, each in enumerate(checkpoints)
        ]


class Checkpoints:
    """Saves and loads the checkpoints of one run.

    Use it as a context manager: on exit it waits for the save in the background, which would
    otherwise be lost. It keeps the best checkpoint and the latest two. Only one run may write into
    a folder at a time. If a run has several processes, each writes its own parts of the arrays, and
    process 0 seals the checkpoint.

    A checkpoint fits every mesh: it contains the arrays with the padding of the mesh that saved
    them, and loading changes the padding to that of the current mesh.
    """

    def __init__(
        self,
        folder: Path,
        *,
        read_only: bool = False,
        shapes: Mapping[str, Sequence[int]] | None = None,
    ):
        """Opens the folder.

        Args:
          folder: Folder of the checkpoints.
          read_only: Whether to open the folder without changing anything in it.
          shapes: The shapes without padding (`sharding.shapes_before_padding`) of those arrays
            that the current mesh pads, by name.

        Raises:
          CheckpointError: Damage keeps Orbax from opening the folder, and the folder is read-only
            or has no sound checkpoint.
        """
        self._preservation = _Preservation()
        if not read_only:
            distributed.on_first(lambda: checkpoint_digests.restore_replaced(folder))
        self._folder, self._read_only = folder, read_only
        self._shapes = {name: list(shape) for name, shape in (shapes or {}).items()}
        self._manager = self._open(
            ocp.CheckpointManagerOptions(
                preservation_policy=self._preservation,
                create=not read_only,
                read_only=read_only,
                save_interval_steps=0 if read_only else 1,
            )
        )
        self._sealing: threading.Thread | None = None
        self._failure: Exception | None = None
        self._failed = False

    def _open(self, options: ocp.CheckpointManagerOptions) -> ocp.CheckpointManager:
        """Orbax's manager of the folder; moves checkpoints away that keep it from opening."""
        handlers = {
            # Compression makes the state of a million items take six times as long to write, for a
            # tenth less disk, and needs nine tenths of its size in memory.
            "state": ocp.PyTreeCheckpointHandler(use_compression=False),
            "progress": ocp.JsonCheckpointHandler(),
        }
        open_folder = functools.partial(
            ocp.CheckpointManager, self._folder.absolute(), options=options, item_handlers=handlers
        )
        try:
            return open_folder()
        except OSError:
            raise
        except Exception as error:  # Orbax's errors have no common class.
            # Process 0 decides, so that all processes move away the same ones.
            steps, faults = distributed.on_first(self._all_faults)
            if not faults:
                raise
            listed = "; ".join(f"{step}: {each[0]}" for step, each in faults)
            message = f"damaged checkpoints in {self._folder}: {listed}"
            # If none is left, the run would train from the beginning.
            if self._read_only or len(faults) == steps:
                raise CheckpointError(f"{message}; move them elsewhere") from error
            print(message, file=sys.stderr, flush=True)
            for step, _ in faults:
                distributed.on_first(functools.partial(self._move_away, step))
        return open_folder()

    def _all_faults(self) -> tuple[int, list[tuple[int, list[str]]]]:
        """The number of all checkpoints, and the damaged ones with what is wrong with each."""
        steps = saved_steps(self._folder)
        return len(steps), [(step, faults) for step in steps if (faults := self.faults(step))]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None or not isinstance(error, CheckpointError):
                self.wait()
        finally:
            self._close()

    def save(self, state: TrainState, progress: Progress) -> None:
        """Saves a checkpoint; its number is the state's step.

        The arrays of a small state are written in the background, its digests always.

        Args:
          state: The training state.
          progress: The run's progress; its best step is the checkpoint that is kept.

        Raises:
          CheckpointError: The save failed, or the previous one.
        """
        self.wait()
        self._preservation.best_step = progress.best_step
        step = int(state.step)
        if step in self._steps():
            # A preemption saved this step before its validation.
            distributed.on_first(lambda: checkpoint_digests.move_to_replaced(self._folder, step))
            self._manager.reload()
        self._guard(
            lambda: self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(state),
                    progress=ocp.args.JsonSave(
                        dataclasses.asdict(progress) | {"shapes": self._shapes}
                    ),
                ),
                force=True,
            ),
            step,
        )
        if not checkpoint_arrays.fits_background(state):
            self._guard(self._manager.wait_until_finished, step)
        self._sealing = threading.Thread(target=self._seal, args=(step,), daemon=True)
        self._sealing.start()

    def wait(self) -> None:
        """Waits for the save in the background, if there is one.

        Raises:
          CheckpointError: The save failed; lists the sound checkpoints.
        """
        if self._sealing is not None:
            self._sealing.join()
            self._sealing = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _close(self) -> None:
        try:
            self._manager.close()
        # After a failed save Orbax raises its error again here. It would replace ours.
        except Exception:
            if not self._failed:
                raise

    def _seal(self, step: int) -> None:
        """Waits until Orbax has written a checkpoint, and writes its digests."""
        try:
            self._guard(self._manager.wait_until_finished, step)
            if distributed.is_first():
                kept = self._manager.all_steps()
                self._guard(lambda: checkpoint_digests.seal(self._folder, step, kept), step)
        except CheckpointError as error:
            self._failure = error

    def _guard(self, write: Callable[[], Any], step: int) -> None:
        """Calls a part of a save, and turns its errors into a `CheckpointError`."""
        try:
            write()
        # Orbax passes on what its storage raises: OSError, ValueError, XlaRuntimeError.
        except Exception as error:
            self._failed = True
            if distributed.is_first():
                checkpoint_digests.restore_replaced(self._folder)
            self._manager.reload()
            sound = [other for other in self._steps() if not self.faults(other)]
            raise CheckpointError(
                f"checkpoint {step} could not be saved in {self._folder} (disk full?): "
                f"{first_line(error)}\nSound checkpoints: {', '.join(map(str, sound)) or 'none'}. "
                "Free some disk space and run the same command again"
            ) from error

    def _digests_path(self, step: int) -> Path:
        return checkpoint_digests.digests_path(self._folder, step)

    def _steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def faults(self, step: int) -> list[str]:
        """A message for each file of a checkpoint that is missing or has changed.

        Also for its file of digests, if that is missing or damaged.
        """
        return checkpoint_digests.faults(self._folder, step)

    def restore_latest(self, like: TrainState) -> tuple[TrainState, Progress] | None:
        """The newest sound checkpoint.

        Prints which newer checkpoints are damaged, and moves these to the folder `damaged`. Moves
        none if the folder is open read-only.

        Args:
          like: A training state (arrays or their shapes) of the run's configuration.

        Returns:
          State and progress. A checkpoint of an earlier version may lack the buffers if those of
          `like` have no arrays. None if the run has no checkpoint, or was killed in its first save,
          before the digests were written.

        Raises:
          CheckpointError: All checkpoints are damaged, or the newest sound one does not fit `like`.
        """
        damaged: dict[int, str] = {}
        for step in reversed(self.steps()):
            # Process 0 decides, so that all processes continue from the same step.
            faults = distributed.on_first(functools.partial(self.faults, step))
            if not faults:
                if misfits := self._misfits(step, like, "model and optimizer"):
                    raise CheckpointError(misfits)
                try:
                    restored = self._read_state(step, like), self.progress(step)
                except Exception as error:  # Orbax's errors have no common class.
                    if self._digests_path(step).exists():
                        # The files match their digests, so the error is not damage.
                        raise
                    faults = [first_line(error)]
                else:
                    self._move_damaged(list(damaged))
                    return restored
            damaged[step] = f"checkpoint {step} is damaged: {'; '.join(faults[:3])}"
            print(damaged[step], file=sys.stderr, flush=True)
        if not damaged:
            return None
        sealed = distributed.on_first(lambda: checkpoint_digests.ever_sealed(self._folder))
        if len(damaged) == 1 and not sealed and not self._read_only:
            print("the run begins anew: it was killed in its first save", file=sys.stderr)
            self._move_damaged(list(damaged))
            return None
        # The damaged checkpoints stay in place: otherwise the next start would train from the
        # beginning in the same workdir.
        raise CheckpointError(
            "\n".join(damaged.values()) + f"\nno sound checkpoint is left in {self._folder}: to "
            "train from the beginning, choose another --workdir"
        )

    def _move_damaged(self, steps: list[int]) -> None:
        """Moves damaged checkpoints to another folder, so that the run can save their steps."""
        if steps and not self._read_only:
            for step in steps:
                distributed.on_first(functools.partial(self._move_away, step))
            self._manager.reload()

    def _move_away(self, step: int) -> None:
        folder = self._folder / "damaged"
        folder.mkdir(exist_ok=True)
        number = len(list(folder.iterdir()))
        os.replace(self._folder / str(step), folder / f"{step}-{number}")
        if os.path.lexists(path := self._digests_path(step)):
            os.replace(path, folder / f"{step}-{number}.json")

    def steps(self) -> list[int]:
        """The steps of all checkpoints, ascending, including damaged ones."""
        self.wait()
        return self._steps()

    def sound_steps(self) -> list[int]:
        """The steps of the sound checkpoints, ascending."""
        return [step for step in self.steps() if not self.faults(step)]

    def resolve(self, checkpoint: str | int) -> int:
        """The step of a checkpoint.

        If the best checkpoint is damaged, the method prints so and returns the latest sound one. It
        also prints which checkpoints are damaged that are newer than the latest sound one, because
        one of them may have been the best.

        Args:
          checkpoint: "best", "latest", or the number of a step.

        Raises:
          CheckpointError: There is no such checkpoint (lists the existing ones), or "best" is asked
            for and all checkpoints are damaged.
        """
        steps = self.steps()
        if not steps:
            raise CheckpointError(
                f"no checkpoint in {self._folder}: train the run first, or check --workdir"
            )
        if checkpoint == "latest":
            return steps[-1]
        if checkpoint == "best":
            # Process 0 decides, because it alone knows when it has written the digests.
            newest = distributed.on_first(functools.partial(self._newest_sound, steps))
            best = self.progress(newest).best_step
            if best not in steps:
                reason = f"checkpoint {best} is missing" if best else "no step was validated yet"
            elif faults := distributed.on_first(functools.partial(self.faults, best)):
                reason = f"checkpoint {best} is damaged: {'; '.join(faults[:3])}"
            else:
                return best
            print(
                f"no best checkpoint in {self._folder} ({reason}): checkpoint {newest}, the latest "
                "sound one, takes its place",
                file=sys.stderr,
                flush=True,
            )
            return newest
        if not str(checkpoint).isdecimal() or int(checkpoint) not in steps:
            raise CheckpointError(
                f"no checkpoint {checkpoint!r} in {self._folder}: there are 'best', 'latest' and "
                f"steps {', '.join(map(str, steps))}"
            )
        return int(checkpoint)

    def _newest_sound(self, steps: Sequence[int]) -> int:
        """The newest sound checkpoint; prints which newer ones are damaged."""
        for newest in reversed(steps):
            if not (faults := self.faults(newest)):
                return newest
            print(
                f"{self._folder}: checkpoint {newest} is damaged: {'; '.join(faults[:3])}",
                file=sys.stderr,
                flush=True,
            )
        raise CheckpointError(f"all checkpoints in {self._folder} are damaged: {list(steps)}")

    def progress(self, step: int) -> Progress:
        """The run's progress in the checkpoint of a step.

        Raises:
          CheckpointError: The checkpoint holds no progress.
        """
        saved = self._manager.restore(
            step, args=ocp.args.Composite(progress=ocp.args.JsonRestore())
        ).progress
        try:
            check_form(saved, _PROGRESS)
        except ValueError as error:
            raise CheckpointError(
                f"checkpoint {step} in {self._folder} is damaged: progress: {error}"
            ) from error
        return Progress(**{name: saved[name] for name in _PROGRESS_FIELDS if name in saved})

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The training state in the checkpoint of a step.

        Args:
          step: The step of a checkpoint.
          like: A training state (arrays or their shapes) of the run's configuration.

        Raises:
          CheckpointError: The checkpoint is damaged, or has other arrays than `like`; names them.
        """
        self._check(step, like, "model and optimizer")
        return self._read_state(step, like)

    def restore_variables(
        self, step: int, model: FunctionalModel, optimizer: OptimizerConfig
    ) -> nnx.State:
        """The model's parameters and buffers in a checkpoint, with all item rows up to date.

        Args:
          step: The step of a checkpoint.
          model: The run's model.
          optimizer: The run's optimizer.

        Raises:
          CheckpointError: The checkpoint is damaged, or has other variables than the model; names
            them.
        """
        part = dict(zip(("params", "buffers"), model.abstract, strict=True))
        self._check(step, part, "model")
        progress = self.progress(step)
        if not self._rows_may_wait(step, progress):
            restored = self._read(step, part)
            return nnx.merge_state(restored["params"], restored["buffers"])
        # Some item rows wait for updates that the optimizer's state holds.
        rate = learning_rate(optimizer, progress.num_steps)
        catch_up = CatchUpRule.of(optimizer, rate)
        states = States(model, make_optimizer(optimizer, rate), catch_up)
        state = self.restore(step, states.abstract_state)
        return states.up_to_date(state).variables

    def _rows_may_wait(self, step: int, progress: Progress) -> bool:
        """Whether item rows wait for updates (`item_rows`): not after a validation."""
        saved = _shapes(self._manager.item_metadata(step).state)
        return "row_steps" in saved and progress.validated_step != step

    def _read_state(self, step: int, like: TrainState) -> TrainState:
        """The training state in a checkpoint that has been checked."""
        saved = _shapes(self._manager.item_metadata(step).state)
        if like.row_steps is None or "row_steps" in saved:
            return TrainState(**self._read(step, vars(like)))
        # The checkpoint comes from steps that updated the whole table, so all rows are up to date.
        state = TrainState(**self._read(step, vars(like) | {"row_steps": None}))
        rows = like.row_steps
        full = functools.partial(jnp.full, rows.shape, int(state.step), rows.dtype)
        return dataclasses.replace(state, row_steps=jax.jit(full, out_shardings=rows.sharding)())

    def _read(self, step: int, parts: Mapping[str, Any]) -> dict[str, Any]:
        """Parts of the training state in a checkpoint that has been checked, by field."""
        # A part without arrays may be missing in the checkpoint.
        saved = {name: part for name, part in parts.items() if jax.tree.leaves(part)}
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, saved)
        folder = self._folder.absolute() / str(step) / "state"
        return {**parts, **checkpoint_arrays.read(folder, target)}

    def _check(self, step: int, like: Any, what: str) -> None:
        """Raises an error if a checkpoint is damaged, or its arrays are not those of `like`."""
        faults = distributed.on_first(functools.partial(self.faults, step))
        if faults:
            raise CheckpointError(
                f"checkpoint {step} in {self._folder} is damaged: {'; '.join(faults[:3])}"
            )
        if misfits := self._misfits(step, like, what):
            raise CheckpointError(misfits)

    def _misfits(self, step: int, like: Any, what: str) -> str:
        """A message on how a checkpoint's arrays differ from those of `like`, or an empty text.

        Args:
          step: The step of a checkpoint.
          like: A training state, or parts of one.
          what: What `like` is, in words.
        """
        try:
            metadata, progress = self._manager.item_metadata(step).state, self.progress(step)
        except Exception:  # Orbax's errors have no common class.
            # The metadata are damaged. Reading the checkpoint will fail and report it.
            return ""
        waiting = isinstance(like, TrainState) and self._rows_may_wait(step, progress)
        if waiting and like.row_steps is None:
            return (
                f"checkpoint {step} in {self._folder} was saved between two validations with drawn "
                "negatives, and item rows wait for updates: set loss.kind back until the next "
                "validation has saved a checkpoint"
            )
        expected = _without_padding(_shapes(like), self._shapes)
        if "row_steps" not in _shapes(metadata):  # All rows are up to date.
            expected.pop("row_steps", None)
        parts = {name.split("/")[0] for name in expected}
        saved = _without_padding(_shapes(metadata), progress.shapes)
        saved = {name: saved[name] for name in saved if name.split("/")[0] in parts}
        if not saved:  # Without any array the checkpoint is damaged, not of another model.
            return ""
        misfits = [
            f"{name}: {saved.get(name, 'nothing')} saved, {expected.get(name, 'nothing')} wanted"
            for name in sorted(saved.keys() | expected.keys())
            if saved.get(name) != expected.get(name)
        ]
        if not misfits:
            return ""
        listed = "\n  ".join([*misfits[:10], *(["..."] if misfits[10:] else [])])
        return (
            f"checkpoint {step} in {self._folder} does not fit this configuration's {what}; use "
            f"the configuration that it was trained with:\n  {listed}"
        )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(leaf.shape) for name, leaf in named_leaves(tree).items()}


def _without_padding(
    shapes: dict[str, tuple[int, ...]], unpadded: Mapping[str, Sequence[int]]
) -> dict[str, tuple[int, ...]]:
    return {name: tuple(unpadded.get(name, shape)) for name, shape in shapes.items()}
