"""The evaluator: every target ranked against the whole catalogue, whatever the model is.

A model enters as a function from histories to hidden vectors and a table of item vectors. A
baseline or an oracle enters as a function to scores. Both leave as the same `EvaluationResult`.
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
from linseqrec.data.histories import gather_histories
from linseqrec.data.splits import Targets
from linseqrec.evaluation import metrics, queries, ranks
from linseqrec.evaluation.result import EvaluationResult
from linseqrec.mesh_axes import MODEL

ScoreFunction = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class _Scorer:
    """What the evaluator asks of a model or a scorer, for users [B] and positions [B].

    Attributes:
      count: With the seen items [B, S] or None, to the counts that ranks are made of.
      blocks: To the scores, as (first item id, scores [B, n]) until every item had its turn.
      max_length: The events that are read; None for all.
    """

    count: Callable[[np.ndarray, np.ndarray, np.ndarray | None], ranks.Counts]
    blocks: Callable[[np.ndarray, np.ndarray], Iterator[tuple[int, np.ndarray]]]
    max_length: int | None


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
        width_multiple: int = 1,
        item_block: int = 8192,
        list_size: int = 10,
        item_counts: np.ndarray | None = None,
        auc: bool = False,
        request_times: bool = False,
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
          padded_lengths: Widths of the batches, the last `max_length`; a batch takes the smallest
            that holds its histories, and a model compiles once for each. By default `max_length`,
            and its half down to its sixteenth where enough histories are that short.
          width_multiple: Default widths are multiples of this, the number of devices that share a
            row.
          item_block: Items scored at once; memory is `batch_size * item_block` floats.
          list_size: Length of the recommended lists behind coverage and popularity; 0 for neither.
          item_counts: [N + 1], training events of each item, for the popularity of what is
            recommended; None leaves it out.
          auc: Also the pooled AUC, at the price of a second pass over model and catalogue and a
            sort of all scores.
          request_times: Whether a model is told the targets' own times as request times. A scorer
            of `run_scores` sees to it by itself.

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
            raise ValueError(
                f"filter_seen must be 'none', 'all', or these two, got {filter_seen!r}"
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
        self._bucket_edges, self._cutoffs = tuple(bucket_edges), tuple(cutoffs)
        self._item_block, self._item_counts = item_block, item_counts
        self._list_size, self._auc = min(list_size, dataset.num_items), auc
        self._request_times = request_times

    def run(
        self, encode: queries.Encode, table: Float[Array, "N1 D"], mesh: Mesh | None = None
    ) -> EvaluationResult:
        """Evaluates a model: the hidden vector at each history's last event against the table.

        Args:
          encode: The model's compiled function, events [B, T] to hidden vectors [B, T, D]. Dropout
            off.
          table: Item vectors by id; row 0 is padding.
          mesh: Over which the table's rows are split, after padding (`linseqrec.sharding`); every
            process then runs this and gets the same result. None: all is on one device.

        Raises:
          NonFiniteScoreError: Some scores are NaN or infinite; names the users.
          ValueError: The table does not fit the data set's catalogue.
        """
        rows = self.dataset.num_items + 1
        if table.shape[0] != rows + (-rows % mesh.shape[MODEL] if mesh else 0):
            raise ValueError(
                f"the item table has {table.shape[0]} rows, the catalogue of "
                f"{self.dataset.num_items} items needs {rows}"
            )

        def query(users: np.ndarray, positions: np.ndarray) -> Array:
            times = np.asarray(self.dataset.timestamps)[positions] if self._request_times else None
            return queries.read_queries(encode, self.dataset, users, positions, self._widths, times)

        def count(
            users: np.ndarray, positions: np.ndarray, seen: np.ndarray | None
        ) -> ranks.Counts:
            return ranks.count_catalogue(
                query(users, positions),
                table,
                self.dataset.items[positions],
                seen,
                item_block=self._item_block,
                top_k=self._list_size,
                num_items=self.dataset.num_items,
                mesh=mesh,
            )

        def blocks(users: np.ndarray, positions: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
            hidden = query(users, positions)
            for first in range(1, rows, self._item_block):
                last = min(first + self._item_block, rows)
                yield first, np.asarray(_score(hidden, table[first:last]))

        return self._collect(_Scorer(count, blocks, self._max_length))

    def run_scores(self, score: ScoreFunction) -> EvaluationResult:
        """Evaluates a scorer: baselines, oracles, models of other libraries.

        Args:
          score: `(users [B], positions [B]) -> scores [B, N + 1]`, from the events
            `offsets[user] : position` of each; column 0 is ignored.

        Raises:
          NonFiniteScoreError: Some scores are NaN or infinite; names the users.
          ValueError: Scores of another shape.
        """

        def checked(users: np.ndarray, positions: np.ndarray) -> np.ndarray:
            scores = score(users, positions)
            expected = (len(users), self.dataset.num_items + 1)
            if scores.shape != expected:
                raise ValueError(f"scores must be [B, N + 1] = {expected}, got {scores.shape}")
            return scores

        def count(
            users: np.ndarray, positions: np.ndarray, seen: np.ndarray | None
        ) -> ranks.Counts:
            targets = self.dataset.items[positions]
            return ranks.count_scores(
                checked(users, positions), targets, seen, top_k=self._list_size
            )

        def blocks(users: np.ndarray, positions: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
            yield 1, checked(users, positions)[:, 1:]

        return self._collect(_Scorer(count, blocks, None))

    def _collect(self, scorer: _Scorer) -> EvaluationResult:
        """Counts batch after batch, and turns the counts into a result."""
        parts: list[tuple[np.ndarray, ranks.Counts]] = []
        waiting: tuple[np.ndarray, int, ranks.Counts] | None = None
        for rows, real in queries.longest_first(self.lengths, self._batch_size):
            # The device works on this batch while the counts of the one before are fetched.
            dispatched = scorer.count(self.users[rows], self.positions[rows], self._seen(rows))
            if waiting is not None:
                parts.append(self._fetch(*waiting))
            waiting = (rows, real, dispatched)
        assert waiting is not None
        parts.append(self._fetch(*waiting))

        order = np.argsort(np.concatenate([rows for rows, _ in parts]))
        counts = jax.tree.map(
            lambda *leaves: np.concatenate(leaves)[order], *[part for _, part in parts]
        )
        pooled = self._pooled_auc(scorer, counts) if self._auc else {}
        return self._result(scorer, counts, pooled)

    def _fetch(
        self, rows: np.ndarray, real: int, counts: ranks.Counts
    ) -> tuple[np.ndarray, ranks.Counts]:
        """Waits for a batch's counts and drops the rows that only filled it up."""
        fetched = counts.fetch("users", self.users[rows])
        return rows[:real], jax.tree.map(lambda leaf: leaf[:real], fetched)

    def _seen(self, rows: np.ndarray) -> np.ndarray | None:
        """The items before each target [B, S], zero-padded, if any filter asks for them."""
        if "all" not in self.filters:
            return None
        return queries.items_before(self.dataset, self.users[rows], self.positions[rows])

    def _pooled_auc(self, scorer: _Scorer, counts: ranks.Counts) -> dict[str, float]:
        """The pooled AUC under each filter, from a second pass over all scores."""
        pooled = {name: metrics.PooledAUC(np.asarray(counts.target_score)) for name in self.filters}
        for rows, real in queries.longest_first(self.lengths, self._batch_size):
            seen = self._seen(rows)
            for first, scores in scorer.blocks(self.users[rows], self.positions[rows]):
                ids = first + np.arange(scores.shape[1])
                other = ids != self.targets[rows, None]
                other[real:] = False
                if "none" in pooled:
                    pooled["none"].add(scores[other])
                if seen is not None:
                    row, slot = np.nonzero((seen >= first) & (seen <= ids[-1]))
                    other[row, seen[row, slot] - first] = False
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
            means, errors = metrics.rank_metrics(result.ranks[name], self._cutoffs)
            removed = np.asarray(counts.seen) if name == "all" else np.zeros(len(self.targets))
            means["GAUC"] = metrics.group_auc(counts.ranks(name, "mean"), num_items - removed)
            if name in pooled:
                means["AUC"] = pooled[name]
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
def _score(hidden: Array, items: Array) -> Array:
    """Scores [B, n] in float32."""
    hidden, items = hidden.astype(jnp.float32), items.astype(jnp.float32)
    return jnp.einsum("bd,nd->bn", hidden, items, precision=lax.Precision.HIGHEST)


def _target_seen(dataset: Dataset, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Whether each target's item occurs among its user's events before it, bool [M]."""
    seen = np.zeros(len(users), bool)
    order = np.argsort(positions - dataset.offsets[users], kind="stable")
    for rows in np.array_split(order, -(-len(order) // 256)):
        histories = gather_histories(dataset, users[rows], positions[rows], None)
        seen[rows] = (histories.items == dataset.items[positions[rows], None]).any(1)
    return seen
