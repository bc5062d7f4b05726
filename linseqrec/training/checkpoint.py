"""Checkpoints: the best and the latest, each a training state beside the run's progress."""

import dataclasses
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import orbax.checkpoint as ocp
from flax import nnx
from orbax.checkpoint import checkpoint_managers

from linseqrec.models.weights import parameter_path
from linseqrec.training.step import TrainState

_METRIC = "selection_metric"


class CheckpointError(RuntimeError):
    """A checkpoint that is not there, or does not fit the model that asks for it."""


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a run stands, beside its arrays.

    Attributes:
      iterator: The data iterator's state.
      best_step: The step whose validation was best so far.
      best_metric: Its selection metric.
      stale: Validations since then.
      seconds: Wall time spent training so far, over all resumptions.
      finished: Whether the run has ended, by its length or by early stopping.
    """

    iterator: dict[str, Any]
    best_step: int
    best_metric: float
    stale: int
    seconds: float
    finished: bool


class Checkpoints:
    """The checkpoints of one run; a context manager, since a save not waited for is lost.

    Keeps the best step and the latest. One process writes into a folder at a time.
    """

    def __init__(self, folder: Path, *, read_only: bool = False):
        policies = [
            checkpoint_managers.LatestN(n=1),
            checkpoint_managers.BestN(
                get_metric_fn=lambda metrics: metrics[_METRIC],
                n=1,
                keep_checkpoints_without_metrics=False,
            ),
        ]
        self._folder = folder
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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._manager.close()

    def save(self, state: TrainState, progress: Progress, metric: float) -> None:
        """Saves in the background under the state's step; `metric` ranks it, higher is better."""
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                progress=ocp.args.JsonSave(dataclasses.asdict(progress)),
            ),
            metrics={_METRIC: metric},
            force=True,
        )

    def latest(self) -> int | None:
        """The newest step, or None where nothing was saved."""
        return self._manager.latest_step()

    def resolve(self, which: str | int) -> int:
        """The step that "best", "latest" or a step's number means.

        Raises:
          CheckpointError: If there is none, with those that there are.
        """
        self._manager.wait_until_finished()
        steps = sorted(self._manager.all_steps())
        if not steps:
            raise CheckpointError(f"no checkpoint in {self._folder}: has the run been trained?")
        if which == "latest":
            return steps[-1]
        if which == "best":
            return self.progress(steps[-1]).best_step
        if not str(which).isdigit() or int(which) not in steps:
            raise CheckpointError(
                f"no checkpoint {which!r} in {self._folder}: there are 'best', 'latest' and steps "
                f"{', '.join(map(str, steps))}"
            )
        return int(which)

    def progress(self, step: int) -> Progress:
        """The run's progress as saved at `step`."""
        return Progress(
            **self._manager.restore(
                step, args=ocp.args.Composite(progress=ocp.args.JsonRestore())
            ).progress
        )

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The training state saved at `step`.

        Args:
          step: One of the steps saved.
          like: A state (arrays or their shapes) of the run's configuration.

        Raises:
          CheckpointError: If its arrays are not those of such a state; names them.
        """
        self._check_fit(step, like, "model and optimizer")
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        return self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target))
        ).state

    def restore_params(self, step: int, like: nnx.State) -> nnx.State:
        """The model's parameters saved at `step`, and nothing else of the training state.

        Args:
          step: One of the steps saved.
          like: Parameters (arrays or their shapes) of the run's model.

        Raises:
          CheckpointError: If the arrays saved are not those of such a model; names them.
        """
        part = {"params": like}
        self._check_fit(step, part, "model")
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, part)
        arguments = ocp.args.PyTreeRestore(
            item=target,
            restore_args=ocp.checkpoint_utils.construct_restore_args(target),
            partial_restore=True,
        )
        folder = self._folder.absolute() / str(step) / "state"
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            return reader.restore(folder, args=arguments)["params"]

    def _check_fit(self, step: int, like: Any, what: str) -> None:
        """Refuses a checkpoint whose arrays differ from `like`'s: the state, or parts of it."""
        wanted = _shapes(like)
        parts = {name.split("/")[0] for name in wanted}
        saved = {
            name: shape
            for name, shape in _shapes(self._manager.item_metadata(step).state).items()
            if name.split("/")[0] in parts
        }
        faults = [
            f"{name}: {saved.get(name, 'absent')} saved, {wanted.get(name, 'none')} wanted"
            for name in sorted(saved.keys() | wanted.keys())
            if saved.get(name) != wanted.get(name)
        ]
        if faults:
            listed = "\n  ".join([*faults[:10], *(["..."] if faults[10:] else [])])
            raise CheckpointError(
                f"checkpoint {step} in {self._folder} does not fit this configuration's {what}:"
                f"\n  {listed}"
            )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {parameter_path(path): tuple(leaf.shape) for path, leaf in leaves}
