"""`Subject`: a checkpoint of a run, restored for an analysis."""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from linseqrec.analysis.traces import linear_mixers, trace
from linseqrec.data.histories import gather_histories
from linseqrec.events import Events
from linseqrec.layers.states import MixerTrace
from linseqrec.training import saved_run
from linseqrec.training.checkpoint import Checkpoints
from linseqrec.training.run import Run, SplitName

_BATCH = 32


@dataclasses.dataclass(frozen=True)
class Subject:
    """A restored checkpoint.

    Attributes:
      name: The run's name in figures.
      run: The checkpoint's run.
      variables: The model's parameters and buffers.
      step: The checkpoint's step.
    """

    name: str
    run: Run
    variables: nnx.State
    step: int

    @classmethod
    def of(cls, folder: Path, name: str, checkpoint: str = "best", *, data: str = "") -> "Subject":
        """Restores a checkpoint.

        Args:
          folder: The run's workdir.
          name: The run's name in figures.
          checkpoint: "best", "latest" or a step.
          data: The dataset folder; empty: where the run's configuration says.

        Raises:
          WorkdirError: If the folder is not the workdir of a run, or its data are gone or have
            changed.
          CheckpointError: If there is no such checkpoint.
        """
        source = saved_run.load_data(folder, data)
        run = Run.of(saved_run.read_experiment(folder), source, trains=False)
        with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
            step = checkpoints.resolve(checkpoint)
            variables = checkpoints.restore_variables(step, run.model, run.experiment.optimizer)
        return cls(name, run, variables, step)

    @property
    def mixers(self) -> list[nnx.Module]:
        """The model's linear mixers, those that a trace is of."""
        model = self.run.model.merge(self.variables)
        return linear_mixers(model)

    def histories(
        self, split: SplitName, count: int, *, at_least: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Histories of users before their last targets in a split, evenly chosen.

        Args:
          split: The targets.
          count: The greatest number of histories.
          at_least: Events that a history must have before its target.

        Returns:
          users: int64 [M], the user of each history.
          positions: int64 [M], the absolute index of each target.
        """
        targets = getattr(self.run.source.split, split)
        users, positions = np.asarray(targets.users), np.asarray(targets.positions)
        long_enough = positions - np.asarray(self.run.source.dataset.offsets)[users] >= at_least
        users, positions = users[long_enough], positions[long_enough]
        # One of each user: errors are over users, and the targets of one are alike.
        last = np.flatnonzero(np.diff(users, append=-1))
        users, positions = users[last], positions[last]
        chosen = np.unique(np.linspace(0, len(users) - 1, min(count, len(users))).astype(int))
        return users[chosen], positions[chosen]

    def traces(
        self, users: np.ndarray, positions: np.ndarray
    ) -> Iterator[tuple[Events, dict[str, MixerTrace]]]:
        """Reads the histories before the positions.

        Args:
          users: [M], the user of each history.
          positions: [M], the absolute index that each history ends before.

        Yields:
          Events and traces by mixer of a batch of histories, NumPy arrays.

        Raises:
          ValueError: If the model has no linear mixer.
        """
        data, dataset = self.run.experiment.data, self.run.source.dataset
        length = self.run.batches.length
        for start in range(0, len(users), _BATCH):
            # The last batch is filled up, so that the model compiles once.
            rows = np.minimum(np.arange(start, start + _BATCH), len(users) - 1)
            real = min(_BATCH, len(users) - start)
            ends = positions[rows]
            times = np.asarray(dataset.timestamps)[ends] if data.request_time == "known" else None
            events = gather_histories(dataset, users[rows], ends, length, times)
            traced = self._trace(self.variables, events)
            yield jax.tree.map(lambda leaf: np.asarray(leaf)[:real], (events, traced))  # noqa: B023

    @functools.cached_property
    def _trace(self) -> Any:
        merge = self.run.model.merge
        return jax.jit(lambda variables, events: trace(merge(variables), events))

    def hidden(self, events: Events, slot: int) -> Float[Array, "B D"]:
        """The hidden vectors at one slot of each row, [B, D], computed in batches."""
        rows, parts = len(events.items), []
        for start in range(0, rows, _BATCH):
            index = np.minimum(np.arange(start, start + _BATCH), rows - 1)
            batch = jax.tree.map(lambda leaf: leaf[index], events)  # noqa: B023
            encoded = self.run.model.encode(self.variables, batch)[:, slot]
            parts.append(encoded[: min(_BATCH, rows - start)])
        return jnp.concatenate(parts)
