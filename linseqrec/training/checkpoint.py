"""Checkpoints: the best and the latest two, each a training state beside the run's progress.

Orbax writes a checkpoint in the background and moves it to its place when it is whole, but would
load one that was damaged since: with a flipped byte, without a word. So each is sealed by digests
of its files, `sha256/STEP.json`, and whoever asks for the latest gets the latest that is sound.
"""

import dataclasses
import functools
import hashlib
import json
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import orbax.checkpoint as ocp
from flax import nnx
from orbax.checkpoint import checkpoint_managers

from linseqrec.errors import UserError
from linseqrec.files import replacing
from linseqrec.models.weights import parameter_path
from linseqrec.training import distributed
from linseqrec.training.step import TrainState

_METRIC = "selection_metric"
_STEP = "step"
# A damaged checkpoint then leaves one to go back to.
_LATEST_KEPT = 2


class CheckpointError(UserError, RuntimeError):
    """A checkpoint that is not there, is damaged, or does not fit the model that asks for it."""


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a run stands, beside its arrays.

    Attributes:
      iterator: The data iterator's state.
      validated_step: The last step that was validated.
      best_step: The step whose validation was best so far.
      best_metric: Its selection metric.
      stale: Validations since then.
      seconds: Wall time spent training so far, over all resumptions.
      unlogged: Sums over the steps since the last record of training metrics.
      shapes: Of those arrays that were saved with a mesh's padding, by name, without it.
    """

    iterator: dict[str, Any]
    validated_step: int = 0
    best_step: int = 0
    best_metric: float = float("-inf")
    stale: int = 0
    seconds: float = 0.0
    unlogged: dict[str, float] = dataclasses.field(default_factory=dict)
    shapes: dict[str, Sequence[int]] = dataclasses.field(default_factory=dict)

    def after_validation(self, step: int, metric: float) -> "Progress":
        """The progress after a validation of `step` whose selection metric is `metric`."""
        progress = dataclasses.replace(self, validated_step=step, stale=self.stale + 1)
        if metric > self.best_metric:
            return dataclasses.replace(progress, best_step=step, best_metric=metric, stale=0)
        return progress


# Other versions save fewer fields, or more.
_PROGRESS = [field.name for field in dataclasses.fields(Progress)]


def ever_saved(folder: Path) -> bool:
    """Whether a checkpoint was ever saved in a folder of checkpoints, sound or damaged."""
    traces = (*folder.glob("sha256/*.json"), *folder.glob("damaged/*"), *folder.glob("*"))
    return any(path.name.partition("-")[0].removesuffix(".json").isdigit() for path in traces)


class Checkpoints:
    """The checkpoints of one run; a context manager, since a save not waited for is lost.

    Keeps the best step and the latest two. One run writes into a folder at a time; of several
    processes each writes its own parts of the arrays, and the first one seals the whole.

    A checkpoint fits every mesh: arrays are saved with the padding that their mesh asks for, and
    restored with that of the mesh that asks for them.
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
          folder: Of the checkpoints.
          read_only: Whether it is left as it is.
          shapes: Of those arrays of the states saved and asked for that are padded, by name,
            without the padding.
        """
        policies = [
            checkpoint_managers.LatestN(n=_LATEST_KEPT),
            checkpoint_managers.BestN(
                # Of equals the first, as the loop has it: Orbax would keep the last.
                get_metric_fn=lambda metrics: (metrics[_METRIC], -metrics.get(_STEP, 0)),
                n=1,
                keep_checkpoints_without_metrics=False,
            ),
        ]
        self._folder, self._read_only = folder, read_only
        self._shapes = {name: list(shape) for name, shape in (shapes or {}).items()}
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
                create=not read_only,
                read_only=read_only,
            ),
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "progress": ocp.JsonCheckpointHandler(),
            },
        )
        self._sealing: threading.Thread | None = None
        self._failure: Exception | None = None
        self._failed = False

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

    def save(self, state: TrainState, progress: Progress, metric: float | None = None) -> None:
        """Saves in the background under the state's step.

        Args:
          state: The training state.
          progress: The run's progress.
          metric: Ranks the checkpoint, higher is better; None: it is never the best.

        Raises:
          CheckpointError: If the save before this one failed.
        """
        self.wait()
        step = int(state.step)
        if step in self._steps():
            # Saved by a preemption before its validation. Were the run killed just here, it would
            # go on from the one before.
            self._digests(step).unlink(missing_ok=True)
            self._guard(lambda: self._manager.delete(step), step)
        self._guard(
            lambda: self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    progress=ocp.args.JsonSave(
                        dataclasses.asdict(progress) | {"shapes": self._shapes}
                    ),
                ),
                metrics=None if metric is None else {_METRIC: metric, _STEP: step},
                force=True,
            ),
            step,
        )
        self._sealing = threading.Thread(target=self._seal, args=(step,), daemon=True)
        self._sealing.start()

    def wait(self) -> None:
        """Waits for the save under way.

        Raises:
          CheckpointError: If it failed; says which checkpoints there are.
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
        # Orbax raises the error of a failed save once more, in the place of ours.
        except Exception:
            if not self._failed:
                raise

    def _seal(self, step: int) -> None:
        """Waits until a step is written, and writes its digests."""
        try:
            self._guard(self._manager.wait_until_finished, step)
            if distributed.is_first():
                self._guard(lambda: self._write_digests(step), step)
        except CheckpointError as error:
            self._failure = error

    def _write_digests(self, step: int) -> None:
        path = self._digests(step)
        path.parent.mkdir(exist_ok=True)
        with replacing(path) as partial:
            partial.write_text(json.dumps(_digests(self._folder / str(step))))
        kept = {str(step) for step in self._manager.all_steps()}
        for other in path.parent.glob("*.json"):
            if other.stem not in kept:
                other.unlink(missing_ok=True)

    def _guard(self, write: Any, step: int) -> None:
        """Runs a part of a save; what goes wrong becomes a message."""
        try:
            write()
        # Orbax passes on whatever its storage raises: OSError, ValueError, XlaRuntimeError.
        except Exception as error:
            self._failed = True
            self._manager.reload()
            sound = [other for other in self._steps() if not self.faults(other)]
            raise CheckpointError(
                f"checkpoint {step} could not be saved in {self._folder} (disk full?): "
                f"{_first_line(error)}\nSound checkpoints: {', '.join(map(str, sound)) or 'none'}. "
                "Make room and run the same command again"
            ) from error

    def _digests(self, step: int) -> Path:
        return self._folder / "sha256" / f"{step}.json"

    def _steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def faults(self, step: int) -> list[str]:
        """What is wrong with a checkpoint's files: those that are missing or have changed.

        One that was not sealed (its process was killed at that moment) was moved to its place
        whole: nothing more is known of it, and none is found wrong.
        """
        path = self._digests(step)
        if not path.exists():
            return []
        now = _digests(self._folder / str(step))
        return [
            f"{name} {'has changed' if name in now else 'is missing'}"
            for name, digest in json.loads(path.read_text()).items()
            if now.get(name) != digest
        ]

    def restore_latest(self, like: TrainState) -> tuple[TrainState, Progress] | None:
        """The newest sound checkpoint; damaged ones are named and set aside.

        Args:
          like: A state of the run's configuration.

        Returns:
          State and progress; None where nothing was ever saved.

        Raises:
          CheckpointError: If there are checkpoints and all are damaged, or the newest sound one is
            of another model.
        """
        damaged: dict[int, str] = {}
        for step in reversed(self.steps()):
            # The first process judges, or the others might go on from another step.
            faults = distributed.on_first(functools.partial(self.faults, step))
            if not faults:
                if misfits := self._misfits(step, like, "model and optimizer"):
                    raise CheckpointError(misfits)
                try:
                    restored = self._read(step, like), self.progress(step)
                except Exception as error:  # Orbax's errors have no common class.
                    if self._digests(step).exists():
                        # Its files are as they were written: the fault is not the checkpoint's.
                        raise
                    faults = [_first_line(error)]
                else:
                    self._set_aside(list(damaged))
                    return restored
            damaged[step] = f"checkpoint {step} is damaged: {'; '.join(faults[:3])}"
            print(damaged[step], file=sys.stderr, flush=True)
        if damaged:
            # They stay where they are, so that no later start takes the run for a new one.
            raise CheckpointError(
                "\n".join(damaged.values())
                + f"\nno sound checkpoint is left in {self._folder}: to "
                "train from the start, choose another --workdir"
            )
        return None

    def _set_aside(self, steps: list[int]) -> None:
        """Moves damaged steps out of the way, so that the run can save those steps again."""
        if steps and not self._read_only:
            for step in steps:
                distributed.on_first(functools.partial(self._move_away, step))
            self._manager.reload()

    def _move_away(self, step: int) -> None:
        folder = self._folder / "damaged"
        folder.mkdir(exist_ok=True)
        number = len(list(folder.iterdir()))
        os.replace(self._folder / str(step), folder / f"{step}-{number}")
        self._digests(step).unlink(missing_ok=True)

    def steps(self) -> list[int]:
        """The steps saved, ascending; damaged ones too."""
        self.wait()
        return self._steps()

    def sound_steps(self) -> list[int]:
        """The steps whose files are sound, ascending."""
        return [step for step in self.steps() if not self.faults(step)]

    def resolve(self, which: str | int) -> int:
        """The step that "best", "latest" or a step's number means.

        Raises:
          CheckpointError: If there is none, with those that there are; or all are damaged.
        """
        steps = self.steps()
        if not steps:
            raise CheckpointError(f"no checkpoint in {self._folder}: has the run been trained?")
        if which == "latest":
            return steps[-1]
        if which == "best":
            newest = next((step for step in reversed(steps) if not self.faults(step)), None)
            if newest is None:
                raise CheckpointError(f"all checkpoints in {self._folder} are damaged: {steps}")
            return self.progress(newest).best_step
        if not str(which).isdigit() or int(which) not in steps:
            raise CheckpointError(
                f"no checkpoint {which!r} in {self._folder}: there are 'best', 'latest' and steps "
                f"{', '.join(map(str, steps))}"
            )
        return int(which)

    def progress(self, step: int) -> Progress:
        """The run's progress as saved at `step`."""
        saved = self._manager.restore(
            step, args=ocp.args.Composite(progress=ocp.args.JsonRestore())
        ).progress
        return Progress(**{name: saved[name] for name in _PROGRESS if name in saved})

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The training state saved at `step`.

        Args:
          step: One of the steps saved.
          like: A state (arrays or their shapes) of the run's configuration.

        Raises:
          CheckpointError: If it is damaged, or its arrays are not those of such a state; names
            them.
        """
        self._check(step, like, "model and optimizer")
        return self._read(step, like)

    def _read(self, step: int, like: TrainState) -> TrainState:
        """The state of a step that has been checked."""
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        return self._manager.restore(
            # Not strict about shapes, which have been checked: padding comes and goes.
            step,
            args=ocp.args.Composite(state=ocp.args.StandardRestore(target, strict=False)),
        ).state

    def restore_params(self, step: int, like: nnx.State) -> nnx.State:
        """The model's parameters saved at `step`, and nothing else of the training state.

        Args:
          step: One of the steps saved.
          like: Parameters (arrays or their shapes) of the run's model.

        Raises:
          CheckpointError: If it is damaged, or the arrays saved are not those of such a model;
            names them.
        """
        part = {"params": like}
        self._check(step, part, "model")
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, part)
        arguments = ocp.args.PyTreeRestore(
            item=target,
            restore_args=ocp.checkpoint_utils.construct_restore_args(target, strict=False),
            partial_restore=True,
        )
        folder = self._folder.absolute() / str(step) / "state"
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            return reader.restore(folder, args=arguments)["params"]

    def _check(self, step: int, like: Any, what: str) -> None:
        """Refuses a checkpoint that is damaged, or does not fit."""
        faults = self.faults(step)
        if faults:
            raise CheckpointError(
                f"checkpoint {step} in {self._folder} is damaged: {'; '.join(faults[:3])}"
            )
        if misfits := self._misfits(step, like, what):
            raise CheckpointError(misfits)

    def _misfits(self, step: int, like: Any, what: str) -> str:
        """How a checkpoint's arrays differ from `like`'s, the state or parts of it; or nothing."""
        try:
            metadata = self._manager.item_metadata(step).state
            unpadded = self.progress(step).shapes
        except Exception:  # Damaged metadata: not for this to say. Orbax's errors share no class.
            return ""
        wanted = _without_padding(_shapes(like), self._shapes)
        parts = {name.split("/")[0] for name in wanted}
        saved = {
            name: shape
            for name, shape in _without_padding(_shapes(metadata), unpadded).items()
            if name.split("/")[0] in parts
        }
        if not saved:  # No arrays at all: damaged rather than another model's.
            return ""
        misfits = [
            f"{name}: {saved.get(name, 'absent')} saved, {wanted.get(name, 'none')} wanted"
            for name in sorted(saved.keys() | wanted.keys())
            if saved.get(name) != wanted.get(name)
        ]
        if not misfits:
            return ""
        listed = "\n  ".join([*misfits[:10], *(["..."] if misfits[10:] else [])])
        return (
            f"checkpoint {step} in {self._folder} does not fit this configuration's {what}:"
            f"\n  {listed}"
        )


def _digests(folder: Path) -> dict[str, str]:
    """The sha256 of each file below a folder, by its path."""
    digests = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        digests[path.relative_to(folder).as_posix()] = digest.hexdigest()
    return digests


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {parameter_path(path): tuple(leaf.shape) for path, leaf in leaves}


def _without_padding(
    shapes: dict[str, tuple[int, ...]], unpadded: Mapping[str, Sequence[int]]
) -> dict[str, tuple[int, ...]]:
    return {name: tuple(unpadded.get(name, shape)) for name, shape in shapes.items()}
