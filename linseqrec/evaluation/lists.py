"""Lists of recommended items after given histories, for any model."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
import polars as pl
from jaxtyping import Array, Bool, Float, Int

from linseqrec.data.dataset import Dataset
from linseqrec.evaluation import queries
from linseqrec.evaluation.ranks import NonFiniteScoreError, Ties, count_catalogue
from linseqrec.ops.top_k import catalogue_top_k

# A cell that a spreadsheet would run as a formula, and a number that it would not.
# Source: https://owasp.org/www-community/attacks/CSV_Injection
_FORMULA = r"^'*[=+\-@\t\r\n＝＋－＠]"
_NUMBER = r"^[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?$"


@dataclasses.dataclass(frozen=True)
class Lists:
    """The best items after each of M histories.

    Attributes:
      items: int32 [M, K], best first; of equal scores, the lower id first. Filled up with 0 if
        fewer than K items are candidates.
      scores: float32 [M, K]; -inf where the item is 0.
      target_ranks: float64 [M], the rank of the next item among the whole catalogue; infinite if
        the lists are filtered and the user has seen the item. None if `rank_next` was False.
    """

    items: Int[np.ndarray, "M K"]
    scores: Float[np.ndarray, "M K"]
    target_ranks: Float[np.ndarray, "M"] | None


def recommend_after(
    dataset: Dataset,
    users: Int[np.ndarray, "M"],
    ends: Int[np.ndarray, "M"],
    encode: queries.Encode,
    table: Float[Array, "N1 D"],
    *,
    top_k: int,
    max_length: int,
    padded_lengths: Sequence[int] | None = None,
    batch_size: int = 128,
    filter_seen: bool = False,
    allowed: Bool[np.ndarray, "N1"] | None = None,
    rank_next: bool = False,
    ties: Ties = "mean",
    request_times: Int[np.ndarray, "M"] | None = None,
) -> Lists:
    """The K best items after each history, and optionally the rank of the next item.

    Args:
      dataset: The events.
      users: The user of each history.
      ends: The end of each history: the absolute index of the first event after it. A history has
        at least one event.
      encode: The model's compiled function, events [B, T] to hidden vectors [B, T, D], without
        dropout.
      table: Item vectors by id; row 0 is padding.
      top_k: K, from 1 to N.
      max_length: T, the number of last events that the model reads of each history.
      padded_lengths: Widths of the batches, as `Evaluator` takes them.
      batch_size: Histories per batch; changes no result.
      filter_seen: Whether to leave the items of the whole history out of the list.
      allowed: Which items, by id, the lists may hold; None: all. It changes no rank.
      rank_next: Whether to rank the item of the event at each end, as the evaluator does. With
        `filter_seen` the rank of a seen item is infinite, because no filtered list contains it.
      ties: How equal scores rank: "mean" or "pessimistic".
      request_times: The request time of each list, on the log's own clock, for a model that reads
        request times; None for other models.

    Raises:
      NonFiniteScoreError: Some scores are NaN or infinite; names the users by the log's ids.
      ValueError: `top_k` is not in 1..N, or the number of table rows is not that of the catalogue.
    """
    if table.shape[0] != dataset.num_items + 1:
        raise ValueError(
            f"the item table has {table.shape[0]} rows, but the catalogue of {dataset.num_items} "
            f"items needs {dataset.num_items + 1}"
        )
    lengths = ends - dataset.offsets[users]
    if padded_lengths is None:
        padded_lengths = queries.worthwhile_widths(lengths, max_length)
    widths = np.array(padded_lengths)
    items = np.zeros((len(users), top_k), np.int32)
    scores = np.zeros((len(users), top_k), np.float32)
    target_ranks = np.zeros(len(users)) if rank_next else None
    for rows, num_real in queries.longest_first(lengths, batch_size):
        times = None if request_times is None else request_times[rows]
        hidden = queries.read_queries(encode, dataset, users[rows], ends[rows], widths, times)
        parts = queries.padded_parts(lengths[rows]) if filter_seen else [slice(0, len(rows))]
        for part in parts:
            own = rows[part]
            seen = queries.items_before(dataset, users[own], ends[own]) if filter_seen else None
            best_items, best_scores, finite = jax.tree.map(
                np.asarray, catalogue_top_k(hidden[part], table, top_k, seen, allowed=allowed)
            )
            if not finite.all():
                bad_users = np.unique(users[own][~finite])
                raise NonFiniteScoreError(dataset.user_ids()[bad_users], "users")
            # Rows beyond `num_real` only fill the batch up.
            real = slice(0, max(num_real - part.start, 0))
            items[own[real]], scores[own[real]] = best_items[real], best_scores[real]
            if target_ranks is not None:
                targets = dataset.items[ends[own]]
                counts = count_catalogue(hidden[part], table, targets, seen).fetch()
                part_ranks = counts.ranks("all" if filter_seen else "none", ties)
                target_ranks[own[real]] = part_ranks[real]
    return Lists(items, scores, target_ranks)


def lists_table(
    lists: Lists,
    dataset: Dataset,
    users: Int[np.ndarray, "M"],
    ends: Int[np.ndarray, "M"],
    user_ids: np.ndarray,
    item_ids: np.ndarray,
) -> pl.DataFrame:
    """Lists as a table with one row per recommended item and the log's own ids.

    Args:
      lists: The result of `recommend_after`.
      dataset: The same argument as of `recommend_after`.
      users: The same argument as of `recommend_after`.
      ends: The same argument as of `recommend_after`.
      user_ids: [U], the log's own id of each user.
      item_ids: [N + 1], the log's own id of each item.

    Returns:
      Columns `user`, `rank` (from 1), `item`, `score` and `history_length` (number of all events
      of the history); if the lists have target ranks, also `target` and `target_rank`. An empty
      list is one row with null rank, item and score, so that the table keeps its target.
    """
    has_item = lists.items > 0
    in_table = has_item.copy()
    in_table[:, 0] = True
    row, place = np.nonzero(in_table)
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
    not_empty = pl.lit(pl.Series(has_item[row, place]))
    return pl.DataFrame(columns).with_columns(
        pl.when(not_empty).then(pl.col(name)).alias(name) for name in ("rank", "item", "score")
    )


def for_spreadsheets(table: pl.DataFrame) -> pl.DataFrame:
    """A table whose texts no spreadsheet runs as formulas.

    A `'` is added before a text that begins as a formula does and is no number: remove one `'` from
    a text that begins with it to have the text again.
    """
    texts = [pl.col(name) for name, kind in table.schema.items() if kind == pl.String]
    return table.with_columns(
        pl.when(text.str.contains(_FORMULA) & ~text.str.contains(_NUMBER))
        .then(pl.concat_str(pl.lit("'"), text))
        .otherwise(text)
        .alias(text.meta.output_name())
        for text in texts
    )
