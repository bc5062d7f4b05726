"""The rank of each user's target among the whole catalogue, in float32, a block of items at a time.

`rank = 1 + #greater + #equal / 2` over the other candidates, so that a model which cannot tell
items apart lands in the middle of the catalogue and not at its top. Item 0 is never a candidate,
and a score that is not finite is an error, never a rank.

Axis letters: B batch, D width, N catalogue, S seen items, K length of the recommended list.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from linseqrec.errors import UserError
from linseqrec.mesh_axes import DATA, MODEL
from linseqrec.ops.top_k import (
    Best,
    items_a_block,
    merge_best,
    no_best,
    padded_rows,
    padded_table,
    score_block,
)

Ties = Literal["mean", "pessimistic"]
FilterSeen = Literal["none", "all"]


def in_words(filter_seen: FilterSeen | str) -> str:
    """What a filter does to seen items, for tables and figures: "filtered" or "not filtered"."""
    return "filtered" if filter_seen == "all" else "not filtered"


def seen_slots(longest: int) -> int:
    """How wide seen items are padded: 256 or a power of 4 above, for few compilations."""
    width = 256
    while width < longest:
        width *= 4
    return width


class NonFiniteScoreError(UserError, ValueError):
    """Some scores are NaN or infinite; `rows` are the indices of the rows that hold them."""

    def __init__(self, rows: np.ndarray, what: str = "rows"):
        self.rows = np.asarray(rows)
        shown = ", ".join(str(int(row)) for row in self.rows[:10])
        more = f" and {len(self.rows) - 10} more" if len(self.rows) > 10 else ""
        super().__init__(
            f"NaN or infinite scores for {what} {shown}{more}: nothing can be ranked; look for "
            "divergence in training or for inputs the model cannot digest"
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Counts:
    """How a batch of targets compares with the other candidates: all that a rank needs.

    Attributes:
      greater: Candidates that score above the target.
      equal: Other candidates that score exactly as the target.
      seen: Distinct seen items other than the target; 0 without seen items.
      seen_greater: Those of `greater` that are seen.
      seen_equal: Those of `equal` that are seen.
      target_score: The target's own score.
      finite: Whether every score of the row is finite.
      top: The K best candidates, best first, lower ids first among equals, 0 where there are no
        more candidates; None when not asked.
      top_unseen: The same without the seen items (the target stays).
    """

    greater: Int[Array, " B"]
    equal: Int[Array, " B"]
    seen: Int[Array, " B"]
    seen_greater: Int[Array, " B"]
    seen_equal: Int[Array, " B"]
    target_score: Float[Array, " B"]
    finite: Bool[Array, " B"]
    top: Int[Array, "B K"] | None = None
    top_unseen: Int[Array, "B K"] | None = None

    def fetch(self, what: str = "rows", names: np.ndarray | None = None) -> "Counts":
        """The same counts as NumPy arrays, after the check that every score was finite.

        Args:
          what: What the rows are, for the error message.
          names: [B], how to name the rows in the error message; their indices by default.

        Raises:
          NonFiniteScoreError: Some scores are NaN or infinite.
        """
        counts = jax.tree.map(np.asarray, self)
        bad = np.flatnonzero(~counts.finite)
        if bad.size:
            raise NonFiniteScoreError(bad if names is None else np.asarray(names)[bad], what)
        return counts

    def ranks(self, filter_seen: FilterSeen = "none", ties: Ties = "mean") -> np.ndarray:
        """Ranks float64 [B], from 1; fractional where the target ties with others.

        Args:
          filter_seen: "all" removes the seen items (never the target) from the candidates.
          ties: "mean" puts the target in the middle of its equals, "pessimistic" behind them.
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
        return 1.0 + greater + (equal / 2.0 if ties == "mean" else equal)


def count_catalogue(
    hidden: Float[Array, "B D"],
    table: Float[Array, "N1 D"],
    targets: Int[np.ndarray, " B"],
    seen: Int[np.ndarray, "B S"] | None = None,
    *,
    item_block: int = 8192,
    top_k: int = 0,
    num_items: int | None = None,
    mesh: Mesh | None = None,
) -> Counts:
    """Scores every item by `hidden @ table.T` and compares each row's target with the others.

    Scores are float32 whatever the inputs are, at the highest matmul precision, and live a block
    of items at a time. The target's own score comes out of the very same matmul instruction as the
    scores it is compared with: blocks that hold targets are visited once more, first.

    Args:
      hidden: One query a row.
      table: Item vectors by id, N + 1 rows; row 0 is padding and never a candidate.
      targets: Item ids from 1 to N.
      seen: Item ids to report separately, padded with 0, in any order, repeats allowed; None for
        none. The target itself is never among the `seen` counts.
      item_block: Items scored at once, a multiple of 64; changes memory and speed, no result.
      top_k: K, how many best candidates to return; 0 for none.
      num_items: N, where the table has more rows, which are padding.
      mesh: Where the table's rows are split over `model` and the queries over `data`, both evenly:
        each device ranks against its own part of the catalogue, and what is put together are
        targets' scores, counts, and K best of each part. None: all is on one device.

    Returns:
      `Counts` on the device, not waited for: `fetch()` brings them here and checks them.

    Raises:
      ValueError: A target outside 1..N, shapes that do not fit, a bad `item_block`.
    """
    targets = np.asarray(targets)
    num_rows = hidden.shape[0]
    num_slots = table.shape[0] if num_items is None else num_items + 1
    if targets.shape != (num_rows,) or hidden.shape[1] != table.shape[1]:
        raise ValueError(
            f"shapes do not fit: hidden {hidden.shape}, table {table.shape}, "
            f"targets {targets.shape}"
        )
    _check_targets(targets, num_slots)
    if top_k > num_slots - 1:
        raise ValueError(f"top_k is {top_k}, the catalogue has {num_slots - 1} items")
    parts = 1 if mesh is None else mesh.shape[MODEL]
    part_rows = table.shape[0] // parts
    block = items_a_block(part_rows, item_block)
    visits, num_holding, num_visits = _plan_visits(targets, part_rows, parts, block)
    arrays = (
        hidden,
        table,
        targets.astype(np.int32),
        None if seen is None else np.asarray(seen).astype(np.int32),
        visits,
        num_holding,
        num_visits,
    )
    sizes = {"num_slots": num_slots, "block": block, "top_k": top_k}
    if mesh is None:
        return _count_blocks(*arrays, **sizes)
    return _count_split(mesh, **sizes)(*arrays)


def _plan_visits(
    targets: Int[np.ndarray, " B"], part_rows: int, parts: int, block: int
) -> tuple[Int[np.ndarray, "P V"], int, int]:
    """Which blocks of its rows each part of the table visits, in order.

    Returns:
      visits: Of each part first the blocks that hold targets, then all.
      num_holding: How many come first, in every part: some repeat their block 0.
      num_visits: How many there are.
    """
    blocks = np.arange(-(-part_rows // block))
    holding = [
        np.unique(targets[targets // part_rows == part] % part_rows // block)
        for part in range(parts)
    ]
    num_holding = max(map(len, holding))
    # Dynamic count, fixed shape: no compilation of its own for every set of holding blocks.
    visits = np.zeros((parts, min(len(blocks), len(targets)) + len(blocks)), np.int32)
    for row, found in zip(visits, holding, strict=True):
        row[: len(found)] = found
        row[num_holding : num_holding + len(blocks)] = blocks
    return visits, num_holding, num_holding + len(blocks)


def catalogue_ranks(
    hidden: Float[Array, "B D"],
    table: Float[Array, "N1 D"],
    targets: Int[np.ndarray, " B"],
    seen: Int[np.ndarray, "B S"] | None = None,
    *,
    ties: Ties = "mean",
    item_block: int = 8192,
) -> np.ndarray:
    """Ranks float64 [B] of the targets; `seen` items, where given, are no candidates.

    See `count_catalogue` for the arguments and `Counts.ranks` for the definition.

    Raises:
      NonFiniteScoreError: Some scores are NaN or infinite.
    """
    counts = count_catalogue(hidden, table, targets, seen, item_block=item_block).fetch()
    return counts.ranks("none" if seen is None else "all", ties)


Carry = tuple[Counts, Best, Best]


@functools.lru_cache
def _count_split(mesh: Mesh, *, num_slots: int, block: int, top_k: int) -> Any:
    """`_count_blocks` on a mesh, its arguments split; the counts come back to every device."""
    count = functools.partial(
        _count_blocks, num_slots=num_slots, block=block, top_k=top_k, axis_name=MODEL
    )
    rows, part, shared = PartitionSpec(DATA), PartitionSpec(MODEL), PartitionSpec()
    return jax.jit(
        # What the parts agree on after the exchange is theirs alike, though nothing proves it.
        jax.shard_map(
            count,
            mesh=mesh,
            in_specs=(rows, part, rows, rows, part, shared, shared),
            out_specs=rows,
            check_vma=False,
        ),
        out_shardings=NamedSharding(mesh, shared),
    )


@functools.partial(jax.jit, static_argnames=("num_slots", "block", "top_k", "axis_name"))
def _count_blocks(
    hidden: Array,
    table: Array,
    targets: Array,
    seen: Array | None,
    visits: Array,
    num_holding: Array,
    num_visits: Array,
    *,
    num_slots: int,
    block: int,
    top_k: int,
    axis_name: str | None = None,
) -> Counts:
    """One loop over `visits`: the first `num_holding` find the targets' scores, the rest count.

    A table of one block needs no loop. With an axis name the table is one of its parts, and the
    parts put together what they found after each of the two.
    """
    num_rows, part_rows = hidden.shape[0], table.shape[0]
    offset = 0 if axis_name is None else lax.axis_index(axis_name) * part_rows
    # Items count from the part's first row.
    own_targets = targets - offset
    held = (own_targets >= 0) & (own_targets < part_rows)
    query, table = padded_rows(hidden), padded_table(table, block)
    rows = jnp.arange(num_rows)
    # One block holds all targets: one visit finds their scores and counts.
    one_block = axis_name is None and part_rows <= block

    def find(scores: Array, first: Array, start: Array, counts: Counts) -> Counts:
        local = own_targets - start
        inside = held & (own_targets >= first) & (local < block)
        own = scores[rows, jnp.clip(local, 0, block - 1)]
        return dataclasses.replace(counts, target_score=jnp.where(inside, own, counts.target_score))

    def count(
        scores: Array, first: Array, start: Array, counts: Counts
    ) -> tuple[Counts, Array, Array]:
        rows_here = start + jnp.arange(block)
        ids = offset + rows_here
        # The last block reaches back over the one before it; what that one counted is masked.
        candidate = (rows_here >= first) & (rows_here < part_rows) & (ids > 0) & (ids < num_slots)
        other = candidate & (ids != targets[:, None])
        above = other & (scores > counts.target_score[:, None])
        level = other & (scores == counts.target_score[:, None])
        changes: dict[str, Array] = {
            "greater": counts.greater + above.sum(1),
            "equal": counts.equal + level.sum(1),
            "finite": counts.finite & (jnp.isfinite(scores) | ~candidate).all(1),
        }
        removed = jnp.zeros_like(other)
        if seen is not None:
            here = seen - offset
            local = jnp.where((seen > 0) & (here >= first), here - start, block)
            removed = other & removed.at[rows[:, None], local].set(True, mode="drop")
            changes["seen"] = counts.seen + removed.sum(1)
            changes["seen_greater"] = counts.seen_greater + (removed & above).sum(1)
            changes["seen_equal"] = counts.seen_equal + (removed & level).sum(1)
        return dataclasses.replace(counts, **changes), removed, candidate

    def visit(index: Array, carry: Carry) -> Carry:
        first = visits[0, index] * block
        start = jnp.minimum(first, table.shape[0] - block)
        scores = score_block(query, table, start, block)[:num_rows]

        def counted(counts: Counts, best: Best, best_unseen: Best) -> Carry:
            counts, removed, candidate = count(scores, first, start, counts)
            if top_k:
                best = merge_best(best, scores, candidate, offset + start)
                unseen = candidate & ~removed
                best_unseen = (
                    merge_best(best_unseen, scores, unseen, offset + start)
                    if seen is not None
                    else best
                )
            return counts, best, best_unseen

        def found(counts: Counts, best: Best, best_unseen: Best) -> Carry:
            return find(scores, first, start, counts), best, best_unseen

        if one_block:
            return counted(*found(*carry))
        return lax.cond(index < num_holding, found, counted, *carry)

    zeros = jnp.zeros(num_rows, jnp.int32)
    counts = Counts(
        zeros, zeros, zeros, zeros, zeros, zeros.astype(jnp.float32), jnp.ones(num_rows, bool)
    )
    best = no_best(num_rows, top_k)
    carry = counts, best, best
    if one_block:
        # A loop whose end is data would make an accelerator wait for the host.
        counts, best, best_unseen = visit(jnp.zeros((), jnp.int32), carry)
    elif axis_name is None:
        counts, best, best_unseen = lax.fori_loop(0, num_visits, visit, carry)
    else:

        def phase(number: Array, carry: Carry) -> Carry:
            begin = jnp.where(number == 0, 0, num_holding)
            end = jnp.where(number == 0, num_holding, num_visits)
            counts, *both = lax.fori_loop(begin, end, visit, carry)
            known = lax.psum(jnp.where(held, counts.target_score, 0), axis_name)
            return dataclasses.replace(counts, target_score=known), *both

        counts, best, best_unseen = lax.fori_loop(0, 2, phase, carry)
        counts = _put_together(counts, axis_name)
        best, best_unseen = (_best_of_all(found, axis_name) for found in (best, best_unseen))
    if not top_k:
        return counts
    return dataclasses.replace(counts, top=best[1], top_unseen=best_unseen[1])


def _put_together(counts: Counts, axis_name: str) -> Counts:
    """The counts over the whole catalogue from those over its parts."""
    names = ("greater", "equal", "seen", "seen_greater", "seen_equal")
    sums = {name: lax.psum(getattr(counts, name), axis_name) for name in names}
    finite = lax.psum((~counts.finite).astype(jnp.int32), axis_name) == 0
    return dataclasses.replace(counts, finite=finite, **sums)


def _best_of_all(best: Best, axis_name: str) -> Best:
    """The best of the whole catalogue from the best of each part."""
    # In the order of the parts, so that lower ids stay ahead of their equals.
    scores, ids = (lax.all_gather(part, axis_name, axis=1, tiled=True) for part in best)
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
    targets: Int[np.ndarray, " B"],
    seen: Int[np.ndarray, "B S"] | None = None,
    *,
    top_k: int = 0,
) -> Counts:
    """The same `Counts` from scores at hand, in their own precision: baselines and oracles.

    Args:
      scores: One row of scores by item id; column 0 is ignored.
      targets: Item ids from 1 to N.
      seen: As in `count_catalogue`.
      top_k: As in `count_catalogue`.

    Raises:
      ValueError: A target outside 1..N.
    """
    scores, targets = np.asarray(scores), np.asarray(targets)
    num_rows, num_slots = scores.shape
    _check_targets(targets, num_slots)
    rows = np.arange(num_rows)
    own = scores[rows, targets]
    other = np.ones(scores.shape, bool)
    other[:, 0] = False
    other[rows, targets] = False
    above = other & (scores > own[:, None])
    level = other & (scores == own[:, None])
    mask = np.zeros(scores.shape, bool)
    if seen is not None:
        mask[rows[:, None], seen] = True
        mask &= other
    top: Any = None
    top_unseen: Any = None
    if top_k:
        top = _best(scores, np.zeros_like(mask), top_k)
        top_unseen = _best(scores, mask, top_k)
    return Counts(
        greater=above.sum(1),
        equal=level.sum(1),
        seen=mask.sum(1),
        seen_greater=(above & mask).sum(1),
        seen_equal=(level & mask).sum(1),
        target_score=own,
        finite=np.isfinite(scores[:, 1:]).all(1),
        top=top,
        top_unseen=top_unseen,
    )


def _best(scores: np.ndarray, removed: np.ndarray, top_k: int) -> np.ndarray:
    """The `top_k` best columns from 1, best first, lower ids first among equals."""
    kept = np.where(removed, -np.inf, scores)[:, 1:]
    last = -np.partition(-kept, top_k - 1, axis=1)[:, top_k - 1 : top_k]
    room = top_k - (kept > last).sum(1, keepdims=True)
    level = kept == last
    chosen = (kept > last) | (level & (np.cumsum(level, axis=1) <= room))
    ids = np.nonzero(chosen)[1].reshape(-1, top_k)
    values = np.take_along_axis(kept, ids, 1)
    best = np.argsort(-values, axis=1, kind="stable")
    ids = np.where(np.isneginf(values), 0, ids + 1)
    return np.take_along_axis(ids, best, 1)
