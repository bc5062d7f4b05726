"""`Evaluator`: ranks each target of a split among all items of the catalogue.

It evaluates two kinds of scorer. A model is a function from histories to hidden vectors, with a
table of item vectors. A baseline or an oracle is a function that returns scores. Both give an
`EvaluationResult`.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from linseqrec.data.dataset import Dataset
from linseqrec.data.splits import Targets
from linseqrec.evaluation import metrics, queries, ranks, sparse_scores
from linseqrec.evaluation.result import SEEN_TARGETS, EvaluationResult
from linseqrec.evaluation.sparse_scores import SparseScorer
from linseqrec.sharding import DATA, MODEL

ScoreFunction = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class _Scorer:
    """A model or a score function, as the evaluator calls it.

    Attributes:
      count: From the targets [B] of a batch to its consecutive parts and their `Counts`.
      blocks: From the targets [B] of a batch to triples `(part, first item id, scores [b, n])`,
        which together contain the scores of all items.
      max_length: Number of last events that the scorer reads; None for all.
    """

    count: Callable[[np.ndarray], Iterator[tuple[slice, ranks.Counts]]]
    blocks: Callable[[np.ndarray], Iterator[tuple[slice, int, np.ndarray]]]
    max_length: int | None


class Evaluator:
    """Ranks the targets of one split, for any number of models or training steps.

    Attributes:
      users, positions, targets: [M], each target's user, absolute event index and item.
      lengths: int64 [M], number of events before each target.
      target_seen: bool [M], whether the target's item occurs among these events.
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
        bucket_edges: Sequence[int] | None = None,
        padded_lengths: Sequence[int] | None = None,
        width_multiple: int = 1,
        item_block: int = 8192,
        list_size: int = 10,
        item_counts: np.ndarray | None = None,
        auc: bool = False,
        request_times: bool = False,
    ):
        """Reads the targets.

        Args:
          dataset: The events.
          split_targets: The events to predict; each has at least one event of its user before it.
          max_length: T, the number of last events that a model reads.
          batch_size: Histories per batch. The last batch is filled up to this size, so that JAX
            compiles a model only once for each padded length.
          filter_seen: "none"; "all", which removes every item of the user's whole history from the
            candidates, so that a seen target is a miss; or both, for which the model still runs
            only once.
          ties: "mean" or "pessimistic" (see `Counts.ranks`).
          split: Name of the targets in the protocol: "validation" or "test".
          bucket_edges: Lower bounds of the buckets of history lengths; None for those that the
            histories need (`metrics.length_edges`).
          padded_lengths: Widths of the batches; the last one is `max_length`. A batch takes the
            smallest width that its histories fit in, and JAX compiles a model once for each width.
            By default `max_length`, and its half down to its sixteenth if enough histories are
            that short.
          width_multiple: Default widths are multiples of this number: the devices that share a
            row.
          item_block: Items to score at once; their scores take `batch_size * item_block` floats.
          list_size: Length of the recommended lists for coverage and popularity; 0 for neither.
          item_counts: [N + 1], training events of each item, for the popularity of the recommended
            items; None leaves popularity out.
          auc: Whether to add the pooled AUC. It costs a second pass over model and catalogue, and
            a sort of all scores.
          request_times: Whether `run` passes the targets' own times to the model as request times.
            Score functions of `run_scores` look the times up themselves.

        Raises:
          ValueError: There are no targets, a target has no event before it, or a setting is not
            one of the values above.
        """
        if len(split_targets.positions) == 0:
            raise ValueError(f"the {split or 'given'} split has no targets to evaluate")
        if max_length < 1 or batch_size < 1:
            raise ValueError(
                f"max_length and batch_size must be positive, got {max_length} and {batch_size}"
            )
        self.filters = (filter_seen,) if isinstance(filter_seen, str) else tuple(filter_seen)
        if not self.filters or not set(self.filters) <= {"none", "all"}:
            raise ValueError(
                f"filter_seen must be 'none', 'all', or ('none', 'all'), got {filter_seen!r}"
            )
        self.dataset = dataset
        self.users = np.asarray(split_targets.users)
        self.positions = np.asarray(split_targets.positions)
        self.targets = np.asarray(dataset.items[self.positions])
        self.lengths = self.positions - np.asarray(dataset.offsets)[self.users]
        if (self.lengths < 1).any():
            raise ValueError(
                f"{int((self.lengths < 1).sum())} of {len(self.lengths)} targets have no event "
                "before them, so a model has nothing to read: leave them out of the split"
            )
        if padded_lengths is None:
            padded_lengths = queries.worthwhile_widths(self.lengths, max_length, width_multiple)
        self._widths = np.unique([*padded_lengths])
        if self._widths[0] < 1 or self._widths[-1] != max_length:
            raise ValueError(
                f"padded_lengths must be positive and end at max_length={max_length}, "
                f"got {tuple(padded_lengths)}"
            )
        self.target_seen = _target_seen(dataset, self.users, self.positions)
        self._max_length, self._batch_size = max_length, batch_size
        self._ties, self._split = ties, split
        if bucket_edges is None:
            bucket_edges = metrics.length_edges(self.lengths)
        self._bucket_edges = tuple(bucket_edges)
        self._item_block, self._item_counts = item_block, item_counts
        self._list_size, self._auc = min(list_size, dataset.num_items), auc
        self._request_times = request_times

    def run(
        self, encode: queries.Encode, table: Float[Array, "N1 D"], mesh: Mesh | None = None
    ) -> EvaluationResult:
        """Metrics of a model that scores items by the hidden vector at a history's last event.

        Args:
          encode: The model's compiled function, events [B, T] to hidden vectors [B, T, D], without
            dropout.
          table: Item vectors by id; row 0 is padding.
          mesh: The mesh that splits the table's rows, which are padded to a multiple of its
            `model` axis (`linseqrec.sharding`). Every process calls this method and gets the same
            result. None: the table is on one device.

        Raises:
          NonFiniteScoreError: Some scores are NaN or infinite; names the users by the log's
            ids.
          ValueError: The number of table rows is not that of the data set's catalogue.
        """
        num_rows = self.dataset.num_items + 1
        if table.shape[0] != num_rows + (-num_rows % mesh.shape[MODEL] if mesh else 0):
            raise ValueError(
                f"the item table has {table.shape[0]} rows, but the catalogue of "
                f"{self.dataset.num_items} items needs {num_rows}: evaluate on the data set that "
                "the model was trained on"
            )

        def query(rows: np.ndarray) -> Array:
            users, ends = self.users[rows], self.positions[rows]
            times = np.asarray(self.dataset.timestamps)[ends] if self._request_times else None
            return queries.read_queries(encode, self.dataset, users, ends, self._widths, times)

        def parts(rows: np.ndarray) -> Iterator[slice]:
            if "all" not in self.filters:
                return iter([slice(0, len(rows))])
            devices = mesh.shape[DATA] if mesh else 1
            return queries.padded_parts(self.lengths[rows], devices=devices)

        def count(rows: np.ndarray) -> Iterator[tuple[slice, ranks.Counts]]:
            hidden = query(rows)
            for part in parts(rows):
                yield (
                    part,
                    ranks.count_catalogue(
                        hidden[part],
                        table,
                        self.targets[rows[part]],
                        self._seen(rows[part]),
                        item_block=self._item_block,
                        top_k=self._list_size,
                        num_items=self.dataset.num_items,
                        mesh=mesh,
                    ),
                )

        def blocks(rows: np.ndarray) -> Iterator[tuple[slice, int, np.ndarray]]:
            hidden = query(rows)
            for part in parts(rows):
                for first in range(1, num_rows, self._item_block):
                    items = table[first : min(first + self._item_block, num_rows)]
                    yield part, first, np.asarray(_score(hidden[part], items))

        return self._collect(_Scorer(count, blocks, self._max_length))

    def run_scores(self, score: ScoreFunction) -> EvaluationResult:
        """Metrics of a score function: a baseline, an oracle, or a model of another library.

        Args:
          score: `(users [B], positions [B]) -> scores [B, N + 1]`. Reads the events
            `offsets[user] : position` of each row. Column 0 is ignored. With a large catalogue it
            is called for few rows at a time. A `SparseScorer` need not compute all scores.

        Raises:
          NonFiniteScoreError: Some scores are NaN or infinite; names the users by the log's
            ids.
          ValueError: The scores have another shape.
        """

        def checked_scores(users: np.ndarray, positions: np.ndarray) -> np.ndarray:
            scores = score(users, positions)
            expected = (len(users), self.dataset.num_items + 1)
            if scores.shape != expected:
                raise ValueError(
                    f"the score function must return [B, N + 1] = {expected}, got {scores.shape}"
                )
            return scores

        def parts(rows: np.ndarray) -> Iterator[slice]:
            return queries.padded_parts(self.lengths[rows], scores=self.dataset.num_items + 1)

        def count(rows: np.ndarray) -> Iterator[tuple[slice, ranks.Counts]]:
            for part in parts(rows):
                own = rows[part]
                scores = checked_scores(self.users[own], self.positions[own])
                yield (
                    part,
                    ranks.count_scores(
                        scores, self.targets[own], self._seen(own), top_k=self._list_size
                    ),
                )

        def count_sparse(rows: np.ndarray) -> Iterator[tuple[slice, ranks.Counts]]:
            assert isinstance(score, SparseScorer)
            sizes = score.sizes(self.users[rows], self.positions[rows])
            for part in queries.parts_within(sizes + self.lengths[rows]):
                own = rows[part]
                scores = score.sparse(self.users[own], self.positions[own])
                targets, seen = self.targets[own], self._seen_keys(own)
                yield part, sparse_scores.count(scores, targets, seen, top_k=self._list_size)

        def blocks(rows: np.ndarray) -> Iterator[tuple[slice, int, np.ndarray]]:
            for part in parts(rows):
                own = rows[part]
                yield part, 1, checked_scores(self.users[own], self.positions[own])[:, 1:]

        if isinstance(score, SparseScorer):
            return self._collect(_Scorer(count_sparse, blocks, None))
        return self._collect(_Scorer(count, blocks, None))

    def _collect(self, scorer: _Scorer) -> EvaluationResult:
        """The result of a scorer, from the counts of all batches."""
        parts: list[tuple[np.ndarray, ranks.Counts]] = []
        previous: tuple[np.ndarray, int, ranks.Counts] | None = None
        for rows, num_real in queries.longest_first(self.lengths, self._batch_size):
            for part, counts in scorer.count(rows):
                # The device computes this part while the host fetches the counts of the one before.
                if previous is not None:
                    parts.append(self._fetch(*previous))
                previous = (rows[part], num_real - part.start, counts)
        assert previous is not None
        parts.append(self._fetch(*previous))

        order = np.argsort(np.concatenate([rows for rows, _ in parts]))
        counts = jax.tree.map(
            lambda *leaves: np.concatenate(leaves)[order], *[part for _, part in parts]
        )
        pooled = self._pooled_auc(scorer, counts) if self._auc else {}
        return self._result(scorer, counts, pooled)

    def _fetch(
        self, rows: np.ndarray, num_real: int, counts: ranks.Counts
    ) -> tuple[np.ndarray, ranks.Counts]:
        """A part's rows and counts as NumPy arrays, without the rows that fill the batch up."""
        counts = counts.fetch("users", lambda bad: self.dataset.user_ids()[self.users[rows[bad]]])
        num_real = max(num_real, 0)
        return rows[:num_real], jax.tree.map(lambda leaf: leaf[:num_real], counts)

    def _seen(self, rows: np.ndarray) -> np.ndarray | None:
        """The items before each target [B, S], zero-padded; None if no filter needs them."""
        if "all" not in self.filters:
            return None
        return queries.items_before(self.dataset, self.users[rows], self.positions[rows])

    def _seen_keys(self, rows: np.ndarray) -> np.ndarray | None:
        """What `_seen` gives, as the keys of sparse scores."""
        if "all" not in self.filters:
            return None
        starts = np.asarray(self.dataset.offsets)[self.users[rows]]
        number, events = queries.events_before(starts, self.positions[rows])
        return np.unique(number * (self.dataset.num_items + 1) + self.dataset.items[events])

    def _pooled_auc(self, scorer: _Scorer, counts: ranks.Counts) -> dict[str, float]:
        """The pooled AUC under each filter. Computes all scores once more."""
        own = np.asarray(counts.target_score)
        # Under the filter a seen target loses to every candidate.
        of_unseen = np.where(counts.target_seen, -np.inf, own)
        pooled = {
            name: metrics.PooledAUC(own if name == "none" else of_unseen) for name in self.filters
        }
        for rows, num_real in queries.longest_first(self.lengths, self._batch_size):
            for part, first, scores in scorer.blocks(rows):
                ids = first + np.arange(scores.shape[1])
                other = ids != self.targets[rows[part], None]
                other[max(num_real - part.start, 0) :] = False
                if "none" in pooled:
                    pooled["none"].add(scores[other])
                if (seen := self._seen(rows[part])) is not None:
                    row, column = np.nonzero((seen >= first) & (seen <= ids[-1]))
                    other[row, seen[row, column] - first] = False
                    pooled["all"].add(scores[other])
        return {name: auc.value() for name, auc in pooled.items()}

    def _result(
        self, scorer: _Scorer, counts: ranks.Counts, pooled: dict[str, float]
    ) -> EvaluationResult:
        num_items = self.dataset.num_items
        result = EvaluationResult(
            protocol={
                "split": self._split,
                "filter_seen": list(self.filters),
                "ties": self._ties,
                "candidates": "all items",
                "request_time": "known" if self._request_times else "hidden",
                "max_length": scorer.max_length,
                "num_items": num_items,
                "targets": len(self.targets),
                "users": int(np.unique(self.users).size),
                "targets_among_seen": int(self.target_seen.sum()),
                "seen_targets": SEEN_TARGETS,
                "bucket_edges": list(self._bucket_edges),
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
            means, errors = metrics.rank_metrics(result.ranks[name], users=self.users)
            num_removed = np.asarray(counts.seen) if name == "all" else np.zeros(len(self.targets))
            means["GAUC"] = metrics.group_auc(counts.ranks(name, "mean"), num_items - num_removed)
            if name in pooled:
                means["AUC"] = pooled[name]
            top = counts.top if name == "none" else counts.top_unseen
            if top is not None:
                means |= metrics.list_metrics(np.asarray(top), num_items, self._item_counts)
            result.metrics_by_filter[name] = means
            result.standard_errors[name] = errors
            result.buckets[name] = metrics.bucket_metrics(
                result.ranks[name],
                self.lengths,
                self._bucket_edges,
                users=self.users,
            )
        return result


@jax.jit
def _score(hidden: Array, items: Array) -> Array:
    """Scores [B, n] in float32."""
    hidden, items = hidden.astype(jnp.float32), items.astype(jnp.float32)
    return jnp.einsum("bd,nd->bn", hidden, items, precision=lax.Precision.HIGHEST)


def _target_seen(dataset: Dataset, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Whether each target's item occurs among the user's earlier events, bool [M]."""
    seen = np.zeros(len(users), bool)
    starts, items = np.asarray(dataset.offsets)[users], np.asarray(dataset.items)
    for part in queries.parts_within(positions - starts):
        rows, events = queries.events_before(starts[part], positions[part])
        again = items[events] == items[positions[part]][rows]
        seen[part] = np.bincount(rows[again], minlength=part.stop - part.start) > 0
    return seen
