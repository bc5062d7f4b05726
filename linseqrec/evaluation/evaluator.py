"""The evaluator: every target ranked against the whole catalogue, whatever the model is.

A model enters as a function from histories to hidden vectors and a table of item vectors; a floor
or an oracle enters as a function to scores. Both leave as the same `EvaluationResult`.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from linseqrec.data.dataset import Dataset
from linseqrec.data.histories import gather_histories
from linseqrec.data.splits import Targets
from linseqrec.evaluation import metrics, ranks
from linseqrec.events import Events

Encode = Callable[[Events], Float[Array, "B T D"]]
ScoreFunction = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation found, target by target, under each filter.

    Attributes:
      protocol: JSON-able: split, filters, ties, window, numbers of targets and items.
      users: int64 [M], user index of each target.
      targets: int32 [M], the item to be found.
      lengths: int64 [M], events before the target (all of them, not only the model's window).
      target_seen: bool [M], whether the target stands among those events: where a filter that did
        not spare the target would have removed it.
      ranks: Filter to float64 [M], the targets' ranks.
      metrics_by_filter: Filter to metric name to value.
      standard_errors: Filter to metric name to the standard error over targets.
      buckets: Filter to one record a length bucket (`metrics.bucket_metrics`).
    """

    protocol: dict[str, Any]
    users: np.ndarray
    targets: np.ndarray
    lengths: np.ndarray
    target_seen: np.ndarray
    ranks: dict[str, np.ndarray]
    metrics_by_filter: dict[str, dict[str, float]]
    standard_errors: dict[str, dict[str, float]]
    buckets: dict[str, list[dict[str, Any]]]

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics under the first filter: the only one, or the one to select by."""
        return self.metrics_by_filter[self.protocol["filter_seen"][0]]

    def summary(self) -> dict[str, Any]:
        """Everything but the per-target arrays, ready for `results.json`."""
        return {
            "protocol": self.protocol,
            "metrics": self.metrics_by_filter,
            "standard_errors": self.standard_errors,
            "buckets": self.buckets,
        }

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the per-target dump, from which every rank metric can be recomputed.

        Args:
          path: An `.npz` file; its folder is made. It is replaced in one step, never half written.

        Returns:
          The path. The file holds `user`, `target`, `length`, `target_seen`, `rank_none` and/or
          `rank_all`, one entry a target each, and `protocol` (JSON).

        Raises:
          ValueError: The path does not end in `.npz`.
        """
        path = Path(path)
        if path.suffix != ".npz":
            raise ValueError(f"the per-target dump is an .npz file, got {path}")
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial.npz")
        arrays: dict[str, Any] = {f"rank_{name}": values for name, values in self.ranks.items()}
        np.savez_compressed(
            partial,
            user=self.users,
            target=self.targets,
            length=self.lengths,
            target_seen=self.target_seen,
            protocol=np.array(json.dumps(self.protocol)),
            **arrays,
        )
        partial.replace(path)
        return path


class Evaluator:
    """Ranks the targets of one split; made once, run as often as there are models or steps.

    Attributes:
      users, positions, targets: [M], each target's user, absolute event index and item.
      lengths: int64 [M], events before each target.
      target_seen: bool [M], whether the target occurs among them.
    """

    def __init__(
        self,
        dataset: Dataset,
        split_targets: Targets,
        *,
        max_length: int,
        batch_size: int = 128,
        filter_seen: ranks.FilterSeen | Sequence[ranks.FilterSeen] = "none",
        ties: ranks.Ties = "mean",
        split: str = "",
        bucket_edges: Sequence[int] = metrics.BUCKET_EDGES,
        cutoffs: Sequence[int] = metrics.CUTOFFS,
        padded_lengths: Sequence[int] | None = None,
        item_block: int = 8192,
        list_size: int = 10,
        item_counts: np.ndarray | None = None,
    ):
        """Reads the targets and settles the protocol.

        Args:
          dataset: The events.
          split_targets: What is to be predicted; every target has at least one event before it.
          max_length: T, the last events that a model reads.
          batch_size: Histories a batch; the last batch is filled up, so that a model compiles once
            for each padded length.
          filter_seen: "none", "all" (every item of the user's whole history but the target is no
            candidate), or both: the model then runs once for both.
          ties: "mean" or "pessimistic".
          split: What the targets are, for the protocol: "validation", "test".
          bucket_edges: Lower bounds of the history-length buckets.
          cutoffs: The ks of the metrics.
          padded_lengths: Widths of the batches; a batch takes the smallest that holds its
            histories. By default a quarter, a half and the whole of `max_length`: two more
            compilations against half of the work where histories are short.
          item_block: Items scored at once; memory is `batch_size * item_block` floats.
          list_size: Length of the recommended lists behind coverage and popularity; 0 for neither.
          item_counts: [N + 1], training events of each item, for the popularity of what is
            recommended; None leaves it out.

        Raises:
          ValueError: No targets, or a setting that makes no sense.
        """
        if len(split_targets.positions) == 0:
            raise ValueError(f"the {split or 'given'} split holds no targets to evaluate")
        if max_length < 1 or batch_size < 1:
            raise ValueError(
                f"max_length and batch_size must be positive, got {max_length} and {batch_size}"
            )
        self.filters = (filter_seen,) if isinstance(filter_seen, str) else tuple(filter_seen)
        if not self.filters or not set(self.filters) <= {"none", "all"}:
            raise ValueError(f"filter_seen must be 'none', 'all' or both, got {filter_seen!r}")
        if padded_lengths is None:
            padded_lengths = [-(-max_length // 4), -(-max_length // 2), max_length]
        self._widths = np.unique([*padded_lengths])
        if self._widths[0] < 1 or self._widths[-1] != max_length:
            raise ValueError(
                f"padded_lengths must be positive and end at max_length={max_length}, "
                f"got {tuple(padded_lengths)}"
            )
        self.dataset = dataset
        self.users = np.asarray(split_targets.users)
        self.positions = np.asarray(split_targets.positions)
        self.targets = np.asarray(dataset.items[self.positions])
        self.lengths = self.positions - np.asarray(dataset.offsets)[self.users]
        if (self.lengths < 1).any():
            raise ValueError(
                f"{int((self.lengths < 1).sum())} of {len(self.lengths)} targets have no event "
                "before them: nothing can be predicted from; leave them out of the split"
            )
        self.target_seen = _target_seen(dataset, self.users, self.positions)
        self._max_length, self._batch_size = max_length, batch_size
        self._ties, self._split = ties, split
        self._bucket_edges, self._cutoffs = tuple(bucket_edges), tuple(cutoffs)
        self._item_block, self._item_counts = item_block, item_counts
        self._list_size = min(list_size, dataset.num_items)

    def run(self, encode: Encode, table: Float[Array, "N1 D"]) -> EvaluationResult:
        """Evaluates a model: the hidden vector at each history's last event against the table.

        Args:
          encode: The model's compiled function, events [B, T] to hidden vectors [B, T, D]. Dropout
            off.
          table: Item vectors by id; row 0 is padding.

        Raises:
          NonFiniteScoreError: Some scores are NaN or infinite; names the users.
          ValueError: The table does not fit the data set's catalogue.
        """
        if table.shape[0] != self.dataset.num_items + 1:
            raise ValueError(
                f"the item table has {table.shape[0]} rows, the catalogue of "
                f"{self.dataset.num_items} items needs {self.dataset.num_items + 1}"
            )

        def count(
            users: np.ndarray, positions: np.ndarray, seen: np.ndarray | None
        ) -> ranks.Counts:
            window = int((positions - self.dataset.offsets[users]).max())
            width = int(self._widths[np.searchsorted(self._widths, min(window, self._max_length))])
            events = gather_histories(self.dataset, users, positions, width)
            last = np.asarray(events.segment_ids).sum(1) - 1
            return ranks.count_catalogue(
                _read(encode(events), last),
                table,
                self.dataset.items[positions],
                seen,
                item_block=self._item_block,
                top_k=self._list_size,
            )

        return self._collect(count, {"max_length": self._max_length})

    def run_scores(self, score: ScoreFunction) -> EvaluationResult:
        """Evaluates a scorer: floors, oracles, models of other libraries.

        Args:
          score: `(users [B], positions [B]) -> scores [B, N + 1]`, from the events
            `offsets[user] : position` of each; column 0 is ignored.

        Raises:
          NonFiniteScoreError: Some scores are NaN or infinite; names the users.
          ValueError: Scores of another shape.
        """

        def count(
            users: np.ndarray, positions: np.ndarray, seen: np.ndarray | None
        ) -> ranks.Counts:
            scores = score(users, positions)
            expected = (len(users), self.dataset.num_items + 1)
            if scores.shape != expected:
                raise ValueError(f"scores must be [B, N + 1] = {expected}, got {scores.shape}")
            return ranks.count_scores(
                scores, self.dataset.items[positions], seen, top_k=self._list_size
            )

        return self._collect(count, {"max_length": None})

    def _batches(self) -> Iterator[tuple[np.ndarray, int]]:
        """Row indices [batch_size] and how many of them are real, longest histories first."""
        order = np.argsort(-self.lengths, kind="stable")
        for start in range(0, len(order), self._batch_size):
            rows = order[start : start + self._batch_size]
            yield np.pad(rows, (0, self._batch_size - len(rows)), mode="edge"), len(rows)

    def _collect(
        self,
        count: Callable[[np.ndarray, np.ndarray, np.ndarray | None], ranks.Counts],
        window: dict[str, Any],
    ) -> EvaluationResult:
        """Runs `count` over the batches and turns the counts into a result."""
        parts: list[tuple[np.ndarray, ranks.Counts]] = []
        waiting: tuple[np.ndarray, int, ranks.Counts] | None = None
        for rows, real in self._batches():
            users, positions = self.users[rows], self.positions[rows]
            seen = None
            if "all" in self.filters:
                seen = _whole_histories(self.dataset, users, positions)
            # The device works on this batch while the counts of the one before are fetched.
            dispatched = count(users, positions, seen)
            if waiting is not None:
                parts.append(self._fetch(*waiting))
            waiting = (rows, real, dispatched)
        assert waiting is not None
        parts.append(self._fetch(*waiting))

        order = np.argsort(np.concatenate([rows for rows, _ in parts]))
        counts = jax.tree.map(
            lambda *leaves: np.concatenate(leaves)[order], *[part for _, part in parts]
        )
        return self._result(counts, window)

    def _fetch(
        self, rows: np.ndarray, real: int, counts: ranks.Counts
    ) -> tuple[np.ndarray, ranks.Counts]:
        fetched = counts.fetch("users", self.users[rows])
        return rows[:real], jax.tree.map(lambda leaf: leaf[:real], fetched)

    def _result(self, counts: ranks.Counts, window: dict[str, Any]) -> EvaluationResult:
        num_items = self.dataset.num_items
        result = EvaluationResult(
            protocol={
                "split": self._split,
                "filter_seen": list(self.filters),
                "ties": self._ties,
                "candidates": "all items",
                "num_items": num_items,
                "targets": len(self.targets),
                "users": int(np.unique(self.users).size),
                "targets_among_seen": int(self.target_seen.sum()),
                "bucket_edges": list(self._bucket_edges),
                **window,
            },
            users=self.users,
            targets=self.targets,
            lengths=self.lengths,
            target_seen=self.target_seen,
            ranks={name: counts.ranks(name, self._ties) for name in self.filters},
            metrics_by_filter={},
            standard_errors={},
            buckets={},
        )
        for name in self.filters:
            means, errors = metrics.rank_metrics(result.ranks[name], self._cutoffs)
            removed = np.asarray(counts.seen) if name == "all" else np.zeros(len(self.targets))
            means["GAUC"] = metrics.group_auc(counts.ranks(name, "mean"), num_items - removed)
            top = counts.top if name == "none" else counts.top_unseen
            if top is not None:
                means |= metrics.list_metrics(np.asarray(top), num_items, self._item_counts)
            result.metrics_by_filter[name] = means
            result.standard_errors[name] = errors
            result.buckets[name] = metrics.bucket_metrics(
                result.ranks[name], self.lengths, self._bucket_edges, self._cutoffs
            )
        return result


@jax.jit
def _read(hidden: Array, last: Array) -> Array:
    """The hidden vector [B, D] at slot `last` [B] of each row."""
    return hidden[jnp.arange(hidden.shape[0]), last]


def _whole_histories(dataset: Dataset, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """The items before each target [B, S], zero-padded; S a power of two: few compilations."""
    longest = int((positions - dataset.offsets[users]).max())
    width = 1 << max(6, (longest - 1).bit_length())
    return np.asarray(gather_histories(dataset, users, positions, width).items)


def _target_seen(dataset: Dataset, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Whether each target's item occurs among its user's events before it, bool [M]."""
    seen = np.zeros(len(users), bool)
    order = np.argsort(positions - dataset.offsets[users], kind="stable")
    for rows in np.array_split(order, -(-len(order) // 256)):
        histories = gather_histories(dataset, users[rows], positions[rows], None)
        seen[rows] = (histories.items == dataset.items[positions[rows], None]).any(1)
    return seen
