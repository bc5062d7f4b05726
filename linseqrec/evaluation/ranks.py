"""The rank of each target among all items of the catalogue.

`rank = 1 + #greater + #equal / 2`, counted over the other candidates. Half of the ties count, so
that a model with constant scores ranks every target in the middle of the catalogue, not first.
Item 0 is padding and never a candidate. A NaN or infinite score is an error, never a rank.
Scores are float32, and the device holds those of one block of items at a time.

With seen items filtered, no list can hold an item that the user has seen. A seen target is then a
miss: its rank is infinite (`Counts.ranks`). If it stayed a candidate while the other seen items
leave, the filter would tell the model that the target is one of the few seen items left.

Axis letters: B batch, D width, N catalogue, S seen items, K length of the recommended list.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from linseqrec.errors import UserError, first_ten
from linseqrec.evaluation.visits import Layout, SeenPairs, TargetVisits, plan_seen, plan_targets
from linseqrec.ops.top_k import (
    ROW_MULTIPLE,
    Best,
    items_a_block,
    merge_best,
    no_best,
    padded_rows,
    padded_table,
    score_block,
)
from linseqrec.sharding import DATA, MODEL

Ties = Literal["mean", "pessimistic"]
FilterSeen = Literal["none", "all"]


def in_words(filter_seen: FilterSeen | str) -> str:
    """The filter of seen items in words, for tables and figures: "filtered" or "not filtered"."""
    return "filtered" if filter_seen == "all" else "not filtered"


class NonFiniteScoreError(UserError, ValueError):
    """Some scores are NaN or infinite.

    Attributes:
      rows: The rows with such scores: their indices, or their names (see `Counts.fetch`).
    """

    def __init__(self, rows: np.ndarray, what: str = "rows"):
        """Makes the message.

        Args:
          rows: The rows with NaN or infinite scores.
          what: What a row is, in the plural: "rows", "users".
        """
        self.rows = np.asarray(rows)
        super().__init__(
            f"the model gives NaN or infinite scores for {what} {first_ten(self.rows)}, which have "
            "no rank. Look for divergence in the training log, or for NaN or huge values in the "
            "input"
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Counts:
    """For each target of a batch, how many candidates score above it and how many tie with it.

    Attributes:
      greater: Number of candidates that score above the target.
      equal: Number of other candidates with exactly the target's score.
      seen: Number of distinct seen items, without the target; 0 if no seen items were passed.
      seen_greater: Number of seen items among `greater`.
      seen_equal: Number of seen items among `equal`.
      target_seen: Whether the target itself is among the seen items.
      target_score: The target's own score.
      finite: Whether every score of the row is finite.
      top: Ids of the K best candidates, best first; of equal scores, the lower id first. Filled
        up with 0 if there are fewer candidates. None if `top_k` was 0.
      top_unseen: As `top`, without the seen items.
    """

    greater: Int[Array, "B"]
    equal: Int[Array, "B"]
    seen: Int[Array, "B"]
    seen_greater: Int[Array, "B"]
    seen_equal: Int[Array, "B"]
    target_seen: Bool[Array, "B"]
    target_score: Float[Array, "B"]
    finite: Bool[Array, "B"]
    top: Int[Array, "B K"] | None = None
    top_unseen: Int[Array, "B K"] | None = None

    def fetch(
        self, what: str = "rows", names: Callable[[np.ndarray], np.ndarray] | None = None
    ) -> "Counts":
        """The same counts as NumPy arrays. Waits for the device.

        Args:
          what: What a row is, in the plural, for the error message.
          names: Gives the names of rows by their indices, for the error message; by default the
            indices. Called only for an error.

        Raises:
          NonFiniteScoreError: Some scores are NaN or infinite.
        """
        counts = jax.tree.map(np.asarray, self)
        bad = np.flatnonzero(~counts.finite)
        if bad.size:
            raise NonFiniteScoreError(bad if names is None else names(bad), what)
        return counts

    def ranks(self, filter_seen: FilterSeen = "none", ties: Ties = "mean") -> np.ndarray:
        """Ranks, float64 [B], from 1. A rank is fractional if the target ties with others.

        Args:
          filter_seen: "all" removes the seen items from the candidates. The rank of a seen target
            is then infinite, which is a miss at every cut-off.
          ties: "mean" ranks the target in the middle of the items with its score, "pessimistic"
            behind them.

        Raises:
          ValueError: `filter_seen` or `ties` is not one of its values.
        """
        if filter_seen not in ("none", "all"):
            raise ValueError(f"filter_seen must be 'none' or 'all', got {filter_seen!r}")
        if ties not in ("mean", "pessimistic"):
            raise ValueError(f"ties must be 'mean' or 'pessimistic', got {ties!r}")
        greater = np.asarray(self.greater, np.float64)
        equal = np.asarray(self.equal, np.float64)
        if filter_seen == "all":
            greater = greater - np.asarray(self.seen_greater)
            equal = equal - np.asarray(self.seen_equal)
        ranks = 1.0 + greater + (equal / 2.0 if ties == "mean" else equal)
        return np.where(self.target_seen, np.inf, ranks) if filter_seen == "all" else ranks


def count_catalogue(
    hidden: Float[Array, "B D"],
    table: Float[Array, "N1 D"],
    targets: Int[np.ndarray, "B"],
    seen: Int[np.ndarray, "B S"] | None = None,
    *,
    item_block: int = 8192,
    top_k: int = 0,
    num_items: int | None = None,
    mesh: Mesh | None = None,
) -> Counts:
    """Counts the items that score above each row's target, for scores `hidden @ table.T`.

    Scores are float32 at the highest matmul precision, whatever the type of the inputs. A target's
    score must have the same bits as an equal item's, so it must come from the same matmul
    instruction. The function therefore first scores the block of each target, for the rows whose
    target it holds and in eights, and then scores all blocks to count.

    Args:
      hidden: One query per row.
      table: Item vectors by id, N + 1 rows. Row 0 is padding and never a candidate.
      targets: Item ids from 1 to N.
      seen: Items to count separately, padded with 0, in any order; repeats are allowed. The
        counts of seen items never include the target. None: no item was seen.
      item_block: Items to score at once, a multiple of 64. Changes memory and speed, not results.
      top_k: K, the number of best candidates to return; 0 for none.
      num_items: N. Needed only if the table ends in padding rows.
      mesh: The mesh that splits the table's rows evenly over `model`, and the queries evenly over
        `data`. Each device compares with its own part of the catalogue. The devices then exchange
        target scores, counts and the K best items of each part. None: all arrays are on one device.

    Returns:
      `Counts` on the device. The function does not wait for them; `Counts.fetch` does.

    Raises:
      ValueError: A target is outside 1..N, shapes do not fit, `item_block` is not a multiple of
        64, or `top_k` is larger than the catalogue.
    """
    targets = np.asarray(targets)
    num_rows = hidden.shape[0]
    num_slots = table.shape[0] if num_items is None else num_items + 1
    if targets.shape != (num_rows,) or hidden.shape[1] != table.shape[1]:
        raise ValueError(
            f"shapes do not fit: hidden {hidden.shape}, table {table.shape}, "
            f"targets {targets.shape}; they must be [B, D], [N + 1, D] and [B]"
        )
    _check_targets(targets, num_slots)
    if top_k > num_slots - 1:
        raise ValueError(
            f"top_k is {top_k}, but the catalogue has {num_slots - 1} items: set it to at most that"
        )
    axes = {DATA: 1, MODEL: 1} if mesh is None else mesh.shape
    part_rows = table.shape[0] // axes[MODEL]
    block = items_a_block(part_rows, item_block)
    layout = Layout(axes[DATA], num_rows // axes[DATA], axes[MODEL], part_rows, block)
    visits, pairs = plan_targets(targets, layout), None
    target_seen = np.zeros(num_rows, bool)
    if seen is not None:
        seen = np.asarray(seen)
        target_seen, pairs = (seen == targets[:, None]).any(1), plan_seen(seen, layout)
    arrays = (hidden, table, targets.astype(np.int32), target_seen, visits, pairs)
    sizes = {"num_slots": num_slots, "block": block, "top_k": top_k}
    if mesh is None:
        return _count_blocks(*arrays, **sizes)
    return _count_split(mesh, **sizes)(*arrays)


def catalogue_ranks(
    hidden: Float[Array, "B D"],
    table: Float[Array, "N1 D"],
    targets: Int[np.ndarray, "B"],
    seen: Int[np.ndarray, "B S"] | None = None,
    *,
    ties: Ties = "mean",
    item_block: int = 8192,
) -> np.ndarray:
    """Ranks of the targets, float64 [B]. Items in `seen` are no candidates, targets included.

    `count_catalogue` describes the arguments, `Counts.ranks` the definition of a rank.

    Raises:
      NonFiniteScoreError: Some scores are NaN or infinite.
    """
    counts = count_catalogue(hidden, table, targets, seen, item_block=item_block).fetch()
    return counts.ranks("none" if seen is None else "all", ties)


Carry = tuple[Counts, Best, Best]


@functools.lru_cache
def _count_split(mesh: Mesh, *, num_slots: int, block: int, top_k: int) -> Any:
    """`_count_blocks` for arguments that a mesh splits. Every device gets all counts."""
    count = functools.partial(
        _count_blocks, num_slots=num_slots, block=block, top_k=top_k, axis_name=MODEL
    )
    rows, part, shared = PartitionSpec(DATA), PartitionSpec(MODEL), PartitionSpec()
    both = PartitionSpec(DATA, MODEL)
    visits, pairs = TargetVisits(both, both, shared), SeenPairs(both, both, both, shared)

    def split(*arrays: Any) -> Counts:
        in_specs = (rows, part, rows, rows, visits, None if arrays[-1] is None else pairs)
        # After the exchange the counts are the same on all devices of `model`. JAX cannot prove
        # this, so its check is off.
        return jax.shard_map(count, mesh=mesh, in_specs=in_specs, out_specs=rows, check_vma=False)(
            *arrays
        )

    return jax.jit(split, out_shardings=NamedSharding(mesh, shared))


@functools.partial(jax.jit, static_argnames=("num_slots", "block", "top_k", "axis_name"))
def _count_blocks(
    hidden: Array,
    table: Array,
    targets: Array,
    target_seen: Array,
    targets_at: TargetVisits,
    pairs: SeenPairs | None,
    *,
    num_slots: int,
    block: int,
    top_k: int,
    axis_name: str | None = None,
) -> Counts:
    """Reads the targets' scores in the blocks of a table, then visits all blocks and counts.

    With an axis name the table is this device's part. The devices exchange the target scores before
    they count, and the counts at the end. A table of one block is scored once.
    """
    num_rows, part_rows = hidden.shape[0], table.shape[0]
    offset = 0 if axis_name is None else lax.axis_index(axis_name) * part_rows
    # A target's row in this part of the table; outside the part if another device has it.
    local_targets = targets - offset
    target_is_here = (local_targets >= 0) & (local_targets < part_rows)
    query, table = padded_rows(hidden), padded_table(table, block)
    rows = jnp.arange(num_rows)
    last_start = table.shape[0] - block

    def read_targets(visit: Array, target_scores: Array) -> Array:
        read = targets_at.rows[0, 0, visit]
        start = jnp.minimum(targets_at.blocks[0, 0, visit] * block, last_start)
        scores = score_block(query[jnp.minimum(read, num_rows - 1)], table, start, block)
        column = local_targets.at[read].get(mode="fill", fill_value=0) - start
        own = scores[jnp.arange(ROW_MULTIPLE), jnp.clip(column, 0, block - 1)]
        return target_scores.at[read].set(own, mode="drop")

    # A block is the table's rows `start : start + block`. The last block starts inside the one
    # before it; its rows below `first` were counted there and must not count twice.
    def count_block(
        scores: Array, first: Array, start: Array, counts: Counts
    ) -> tuple[Counts, Array]:
        table_rows = start + jnp.arange(block)
        ids = offset + table_rows
        candidate = (table_rows >= first) & (table_rows < part_rows) & (ids > 0) & (ids < num_slots)
        other = candidate & (ids != targets[:, None])
        greater = other & (scores > counts.target_score[:, None])
        equal = other & (scores == counts.target_score[:, None])
        return dataclasses.replace(
            counts,
            greater=counts.greater + greater.sum(1),
            equal=counts.equal + equal.sum(1),
            finite=counts.finite & (jnp.isfinite(scores) | ~candidate).all(1),
        ), candidate

    def count_seen(
        scores: Array, index: Array, start: Array, pairs: SeenPairs, counts: Counts
    ) -> tuple[Counts, Array]:
        """Counts the seen items of a block; and the scores, -inf at a row's seen items."""
        begin, end = pairs.starts[0, 0, index], pairs.starts[0, 0, index + 1]
        size = len(pairs.at_once)
        row, item = (
            lax.dynamic_slice_in_dim(x[0, 0], begin, size) for x in (pairs.rows, pairs.items)
        )
        row = jnp.where(begin + jnp.arange(size) < end, row, num_rows)
        column = jnp.clip(item - start, 0, block - 1)
        score = scores.at[row, column].get(mode="fill", fill_value=-jnp.inf)
        target, target_score = (
            x.at[row].get(mode="fill", fill_value=0) for x in (targets, counts.target_score)
        )
        other = offset + item != target

        def added(before: Array, which: Array) -> Array:
            return before.at[row].add(which.astype(jnp.int32), mode="drop")

        counts = dataclasses.replace(
            counts,
            seen=added(counts.seen, other),
            seen_greater=added(counts.seen_greater, other & (score > target_score)),
            seen_equal=added(counts.seen_equal, other & (score == target_score)),
        )
        return counts, scores.at[row, column].set(-jnp.inf, mode="drop")

    def visit(index: Array, carry: Carry) -> Carry:
        counts, best, best_unseen = carry
        first = index * block
        start = jnp.minimum(first, last_start)
        scores = score_block(query, table, start, block)[:num_rows]
        if one_block:
            own = scores[rows, jnp.clip(local_targets, 0, block - 1)]
            counts = dataclasses.replace(counts, target_score=own)
        counts, candidate = count_block(scores, first, start, counts)
        if top_k:
            best = best_unseen = merge_best(best, scores, candidate, offset + start)
        if pairs is not None:
            counts, unseen = count_seen(scores, index, start, pairs, counts)
            if top_k:
                best_unseen = merge_best(carry[2], unseen, candidate, offset + start)
        return counts, best, best_unseen

    zeros = jnp.zeros(num_rows, jnp.int32)
    finite = jnp.ones(num_rows, bool)
    target_scores = zeros.astype(jnp.float32)
    # One block holds all targets: one visit finds their scores and counts. And a loop whose end is
    # data would make an accelerator wait for the host.
    one_block = axis_name is None and part_rows <= block
    if not one_block:
        target_scores = lax.fori_loop(0, targets_at.number, read_targets, target_scores)
    if axis_name is not None:
        # Only the device whose part has the target adds its score to the sum.
        target_scores = lax.psum(jnp.where(target_is_here, target_scores, 0), axis_name)
    counts = Counts(zeros, zeros, zeros, zeros, zeros, target_seen, target_scores, finite)
    best = no_best(num_rows, top_k)
    carry = counts, best, best
    if one_block:
        counts, best, best_unseen = visit(jnp.zeros((), jnp.int32), carry)
    else:
        counts, best, best_unseen = lax.fori_loop(0, -(-part_rows // block), visit, carry)
    if axis_name is not None:
        counts = _sum_over_parts(counts, axis_name)
        best = _best_of_parts(best, axis_name)
        best_unseen = _best_of_parts(best_unseen, axis_name)
    if not top_k:
        return counts
    return dataclasses.replace(counts, top=best[1], top_unseen=best_unseen[1])


def _sum_over_parts(counts: Counts, axis_name: str) -> Counts:
    """Counts over the whole catalogue, from each device's counts over its part."""
    names = ("greater", "equal", "seen", "seen_greater", "seen_equal")
    sums = {name: lax.psum(getattr(counts, name), axis_name) for name in names}
    finite = lax.psum((~counts.finite).astype(jnp.int32), axis_name) == 0
    return dataclasses.replace(counts, finite=finite, **sums)


def _best_of_parts(best: Best, axis_name: str) -> Best:
    """The best items of the whole catalogue, from each device's best of its part."""
    # `all_gather` keeps the order of the parts, so that of equal scores the lower id stays first.
    scores, ids = (lax.all_gather(array, axis_name, axis=1, tiled=True) for array in best)
    top, chosen = lax.top_k(scores, best[0].shape[1])
    return top, jnp.take_along_axis(ids, chosen, axis=1)


def _check_targets(targets: np.ndarray, num_slots: int) -> None:
    bad = np.flatnonzero((targets < 1) | (targets >= num_slots))
    if bad.size:
        raise ValueError(
            f"row {int(bad[0])}: target item {int(targets[bad[0]])} is outside the catalogue, "
            f"whose ids run from 1 to {num_slots - 1}"
        )


def count_scores(
    scores: Float[np.ndarray, "B N1"],
    targets: Int[np.ndarray, "B"],
    seen: Int[np.ndarray, "B S"] | None = None,
    *,
    top_k: int = 0,
) -> Counts:
    """Counts as `count_catalogue` does, from the scores of a baseline or an oracle.

    Args:
      scores: Scores by item id. The function compares them in their own precision and ignores
        column 0.
      targets: Item ids from 1 to N.
      seen: As in `count_catalogue`.
      top_k: As in `count_catalogue`.

    Raises:
      ValueError: A target is outside 1..N.
    """
    scores, targets = np.asarray(scores), np.asarray(targets)
    num_rows, num_slots = scores.shape
    _check_targets(targets, num_slots)
    rows = np.arange(num_rows)
    own = scores[rows, targets]
    other = np.ones(scores.shape, bool)
    other[:, 0] = False
    other[rows, targets] = False
    greater = other & (scores > own[:, None])
    equal = other & (scores == own[:, None])
    in_history = np.zeros(scores.shape, bool)
    if seen is not None:
        in_history[rows[:, None], seen] = True
    is_seen = other & in_history
    top: Any = None
    top_unseen: Any = None
    if top_k:
        top = _best_columns(scores, np.zeros_like(in_history), top_k)
        top_unseen = _best_columns(scores, in_history, top_k)
    return Counts(
        greater=greater.sum(1),
        equal=equal.sum(1),
        seen=is_seen.sum(1),
        seen_greater=(greater & is_seen).sum(1),
        seen_equal=(equal & is_seen).sum(1),
        target_seen=in_history[rows, targets],
        target_score=own,
        finite=np.isfinite(scores[:, 1:]).all(1),
        top=top,
        top_unseen=top_unseen,
    )


def _best_columns(scores: np.ndarray, removed: np.ndarray, top_k: int) -> np.ndarray:
    """Item ids [B, K] of the best scores, best first; of equal scores, the lower id first."""
    scores = np.where(removed, -np.inf, scores)[:, 1:]
    kth_score = -np.partition(-scores, top_k - 1, axis=1)[:, top_k - 1 : top_k]
    # Of the items with the K-th best score, take the first ones until the list is full.
    places_left = top_k - (scores > kth_score).sum(1, keepdims=True)
    tied = scores == kth_score
    chosen = (scores > kth_score) | (tied & (np.cumsum(tied, axis=1) <= places_left))
    columns = np.nonzero(chosen)[1].reshape(-1, top_k)
    values = np.take_along_axis(scores, columns, 1)
    order = np.argsort(-values, axis=1, kind="stable")
    ids = np.where(np.isneginf(values), 0, columns + 1)
    return np.take_along_axis(ids, order, 1)
