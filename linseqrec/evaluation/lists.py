"""Lists of recommendations from histories, as the evaluator reads them: for any model."""

import dataclasses

import jax
import numpy as np
import polars as pl
from jaxtyping import Array, Float, Int

from linseqrec.data.dataset import Dataset
from linseqrec.evaluation import queries
from linseqrec.evaluation.ranks import NonFiniteScoreError, Ties, count_catalogue
from linseqrec.ops.top_k import catalogue_top_k


@dataclasses.dataclass(frozen=True)
class Lists:
    """The best items after each of M histories.

    Attributes:
      items: int32 [M, K], best first, the lower id first among equals; 0 where no item is left.
      scores: float32 [M, K]; -inf where the item is 0.
      target_ranks: float64 [M], the rank in the whole catalogue of the item that came next; None
        where it was not asked for.
    """

    items: Int[np.ndarray, "M K"]
    scores: Float[np.ndarray, "M K"]
    target_ranks: Float[np.ndarray, " M"] | None


def recommend_after(
    dataset: Dataset,
    users: Int[np.ndarray, " M"],
    ends: Int[np.ndarray, " M"],
    encode: queries.Encode,
    table: Float[Array, "N1 D"],
    *,
    top_k: int,
    max_length: int,
    batch_size: int = 128,
    filter_seen: bool = False,
    rank_next: bool = False,
    ties: Ties = "mean",
    request_times: Int[np.ndarray, " M"] | None = None,
) -> Lists:
    """Recommends to users after the events before given ones.

    Args:
      dataset: Where the events are.
      users: Whose history each is.
      ends: Absolute event indices; a history ends before it, and holds an event.
      encode: The model's compiled function, events [B, T] to hidden vectors [B, T, D]. Dropout off.
      table: Item vectors by id; row 0 is padding.
      top_k: K, from 1 to N.
      max_length: T, the last events that the model reads of each.
      batch_size: Histories a batch; changes no result.
      filter_seen: Whether items of the whole history are left out of the list.
      rank_next: Whether the event at each end is ranked too, as the evaluator ranks it: with
        `filter_seen` among the items not seen and itself. A list knows nothing of it: an item that
        comes a second time is in no filtered list, but has a rank.
      ties: How equal scores rank, "mean" or "pessimistic".
      request_times: When each list is asked for, on the log's own clock, for a model that is told
        request times; None: hidden.

    Raises:
      NonFiniteScoreError: Some scores are NaN or infinite; names the users.
      ValueError: K that the catalogue does not have, or a table that does not fit it.
    """
    if table.shape[0] != dataset.num_items + 1:
        raise ValueError(f"the item table has {table.shape[0]} rows, want {dataset.num_items + 1}")
    lengths = ends - dataset.offsets[users]
    widths = np.array(queries.worthwhile_widths(lengths, max_length))
    items = np.zeros((len(users), top_k), np.int32)
    scores = np.zeros((len(users), top_k), np.float32)
    target_ranks = np.zeros(len(users)) if rank_next else None
    for rows, real in queries.longest_first(lengths, batch_size):
        times = None if request_times is None else request_times[rows]
        hidden = queries.read_queries(encode, dataset, users[rows], ends[rows], widths, times)
        seen = queries.items_before(dataset, users[rows], ends[rows]) if filter_seen else None
        best, of_best, finite = jax.tree.map(
            np.asarray, catalogue_top_k(hidden, table, top_k, seen)
        )
        if not finite.all():
            raise NonFiniteScoreError(np.unique(users[rows][~finite]), "users")
        kept = rows[:real]
        items[kept], scores[kept] = best[:real], of_best[:real]
        if target_ranks is not None:
            counts = count_catalogue(hidden, table, dataset.items[ends[rows]], seen).fetch()
            target_ranks[kept] = counts.ranks("all" if filter_seen else "none", ties)[:real]
    return Lists(items, scores, target_ranks)


def lists_table(
    lists: Lists,
    dataset: Dataset,
    users: Int[np.ndarray, " M"],
    ends: Int[np.ndarray, " M"],
    user_ids: np.ndarray,
    item_ids: np.ndarray,
) -> pl.DataFrame:
    """Lists as a table, a row an item, by the log's own ids.

    Args:
      lists: What `recommend_after` returned.
      dataset: What it was given.
      users: Likewise.
      ends: Likewise.
      user_ids: [U], original ids.
      item_ids: [N + 1], original ids.

    Returns:
      Columns `user`, `rank` (from 1), `item`, `score` and `history_length` (the user's events
      before the list, all of them); of ranked targets also `target` and `target_rank`. An empty
      list is one row without rank, item and score, so that no target is lost.
    """
    found = lists.items > 0
    kept = found.copy()
    kept[:, 0] = True
    row, place = np.nonzero(kept)
    columns = {
        "user": user_ids[users[row]],
        "rank": place + 1,
        "item": item_ids[lists.items[row, place]],
        "score": lists.scores[row, place],
        "history_length": (ends - dataset.offsets[users])[row],
    }
    if lists.target_ranks is not None:
        columns["target"] = item_ids[dataset.items[ends[row]]]
        columns["target_rank"] = lists.target_ranks[row]
    an_item = pl.lit(pl.Series(found[row, place]))
    return pl.DataFrame(columns).with_columns(
        pl.when(an_item).then(pl.col(name)).alias(name) for name in ("rank", "item", "score")
    )
