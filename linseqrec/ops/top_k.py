"""The best items of a catalogue too large to score at once: a block of it after the other.

Axes: B batch, D width, N catalogue, S seen items, K best items kept.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

# The bits of a matmul may depend on its shape. With rows in eights and items in 64s or more they
# did not on XLA:CPU (0.10.2 and 0.12, widths 16 to 1,000), so every call is padded to these.
ROW_MULTIPLE = 8
ITEM_MULTIPLE = 64

Best = tuple[Array, Array]  # scores [B, K] and ids [B, K] of the best candidates so far


def no_best(num_rows: int, k: int) -> Best:
    """The best of no candidates: id 0 at -inf, K times."""
    return jnp.full((num_rows, k), -jnp.inf, jnp.float32), jnp.zeros((num_rows, k), jnp.int32)


def merge_best(
    best: Best, scores: Float[Array, "B n"], keep: Bool[Array, "*rows n"], first_id: Int[Array, ""]
) -> Best:
    """The best of what was best before and of a block of items with higher ids.

    Args:
      best: Of the items before.
      scores: Of the items `first_id` and up.
      keep: Which of them are candidates, in each row or in all rows.
      first_id: The block's first item.

    Returns:
      The best of both, best first, lower ids first among equals.
    """
    best_scores, best_ids = best
    k = best_scores.shape[1]
    scores, places = jnp.where(keep, scores, -jnp.inf), jnp.arange(scores.shape[1])[None]
    if k * ITEM_MULTIPLE < scores.shape[1] and scores.shape[1] % ITEM_MULTIPLE == 0:
        # The K best stand in the K groups of items with the greatest maxima: whoever is in another
        # group has K items ahead of it. Their maxima are found much faster than the best of all.
        groups = scores.reshape(scores.shape[0], -1, ITEM_MULTIPLE)
        chosen = jnp.sort(lax.top_k(groups.max(axis=2), k)[1], axis=1)[:, :, None]
        scores = jnp.take_along_axis(groups, chosen, axis=1).reshape(scores.shape[0], -1)
        places = (chosen * ITEM_MULTIPLE + jnp.arange(ITEM_MULTIPLE)).reshape(scores.shape)
    ids = jnp.broadcast_to(first_id + places, scores.shape)
    # Equal scores keep their order in `top_k`: lower ids stay ahead, and the zeros that `best`
    # begins with stay ahead of what is masked.
    top, chosen = lax.top_k(jnp.concatenate([best_scores, scores], axis=1), k)
    return top, jnp.take_along_axis(jnp.concatenate([best_ids, ids], axis=1), chosen, axis=1)


def items_a_block(num_slots: int, item_block: int) -> int:
    """How many items are scored at once: `item_block`, or fewer where the table is smaller.

    Raises:
      ValueError: If `item_block` is not a multiple of 64.
    """
    if item_block < 1 or item_block % ITEM_MULTIPLE:
        raise ValueError(f"item_block must be a multiple of {ITEM_MULTIPLE}, got {item_block}")
    return min(item_block, -(-num_slots // ITEM_MULTIPLE) * ITEM_MULTIPLE)


def padded_rows(hidden: Float[Array, "B D"]) -> Float[Array, "B8 D"]:
    """Queries in float32, filled up to a multiple of 8 rows."""
    padding = -hidden.shape[0] % ROW_MULTIPLE
    return jnp.pad(hidden.astype(jnp.float32), ((0, padding), (0, 0)))


def padded_table(table: Float[Array, "N1 D"], block: int) -> Float[Array, "M D"]:
    """The item table, filled up to one block of items where it is smaller."""
    return jnp.pad(table, ((0, max(block - table.shape[0], 0)), (0, 0)))


def score_block(
    query: Float[Array, "B8 D"], table: Float[Array, "M D"], start: Int[Array, ""], block: int
) -> Float[Array, "B8 n"]:
    """Scores of the items `start : start + block`, float32 at the highest matmul precision.

    Args:
      query: From `padded_rows`.
      table: From `padded_table`.
      start: The block's first row in the table.
      block: n, from `items_a_block`.
    """
    items = lax.dynamic_slice_in_dim(table, start, block).astype(jnp.float32)
    scores = jnp.einsum("bd,nd->bn", query, items, precision=lax.Precision.HIGHEST)
    return lax.optimization_barrier(scores)


def catalogue_top_k(
    hidden: Float[Array, "B D"],
    table: Float[Array, "N1 D"],
    k: int,
    seen: Int[np.ndarray, "B S"] | None = None,
    *,
    allowed: Bool[np.ndarray, "N1"] | None = None,
    item_block: int = 8192,
) -> tuple[Int[Array, "B K"], Float[Array, "B K"], Bool[Array, "B"]]:
    """The K best items of each row by `hidden @ table.T`, scored a block of items at a time.

    Args:
      hidden: One query a row.
      table: Item vectors by id, N + 1 rows; row 0 is padding and never among the best.
      k: K, from 1 to N.
      seen: Items that are no candidates, padded with 0, in any order, repeats allowed; None: every
        item is one.
      allowed: By id, which items may be candidates; None: all of them.
      item_block: Items scored at once, a multiple of 64; changes memory and speed, no result.

    Returns:
      ids: int32 [B, K], best first, lower ids first among equals; 0 where no candidates are left.
      scores: float32 [B, K]; -inf where the id is 0.
      finite: Whether all of a row's scores are finite: else its best mean nothing.

    Raises:
      ValueError: K that the catalogue does not have, shapes that do not fit, a bad `item_block`.
    """
    num_items = table.shape[0] - 1
    if not 1 <= k <= num_items:
        raise ValueError(f"k is {k}, but the catalogue has {num_items} items: want 1 to that many")
    if hidden.shape[1] != table.shape[1]:
        raise ValueError(f"shapes do not fit: hidden {hidden.shape}, table {table.shape}")
    if seen is not None and (seen.ndim != 2 or len(seen) != len(hidden)):
        raise ValueError(f"seen must be [{len(hidden)}, S], one row per query, not {seen.shape}")
    if allowed is not None and allowed.shape != table.shape[:1]:
        raise ValueError(f"allowed must be [{num_items + 1}], one flag an id, not {allowed.shape}")
    return _top_k(hidden, table, seen, allowed, block=items_a_block(num_items + 1, item_block), k=k)


@functools.partial(jax.jit, static_argnames=("block", "k"))
def _top_k(
    hidden: Array,
    table: Array,
    seen: Array | None,
    allowed: Array | None,
    *,
    block: int,
    k: int,
) -> tuple[Array, Array, Array]:
    num_rows, num_slots = hidden.shape[0], table.shape[0]
    query, table = padded_rows(hidden), padded_table(table, block)
    if allowed is not None:
        allowed = jnp.pad(allowed, (0, table.shape[0] - num_slots))
    rows = jnp.arange(num_rows)

    def visit(index: Array, carry: tuple[Best, Array]) -> tuple[Best, Array]:
        best, finite = carry
        first = index * block
        # The last block reaches back over the one before it; what that one ranked is masked.
        start = jnp.minimum(first, table.shape[0] - block)
        scores = score_block(query, table, start, block)[:num_rows]
        ids = start + jnp.arange(block)
        candidate = (ids >= jnp.maximum(first, 1)) & (ids < num_slots)
        finite = finite & (jnp.isfinite(scores) | ~candidate).all(1)
        if allowed is not None:
            candidate = candidate & lax.dynamic_slice_in_dim(allowed, start, block)
        keep = jnp.broadcast_to(candidate, scores.shape)
        if seen is not None:
            local = jnp.where(seen >= start, seen - start, block)
            keep = keep.at[rows[:, None], local].set(False, mode="drop")
        return merge_best(best, scores, keep, start), finite

    blocks = -(-num_slots // block)
    start = no_best(num_rows, k), jnp.ones(num_rows, bool)
    (scores, ids), finite = lax.fori_loop(0, blocks, visit, start)
    return ids, scores, finite
