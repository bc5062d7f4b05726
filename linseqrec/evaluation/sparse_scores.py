"""Scores that differ from one row of shared scores in few items, and the ranks among them.

A counting baseline gives most items of a large catalogue a score that is the same for all users.
Here a row of scores is the shared row and its exceptions. Memory and time of a user then grow with
the exceptions, and not with the catalogue.

Axis letters: B batch, N catalogue, P pairs of a row and an item, K length of the recommended list.
"""

import abc
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from linseqrec.evaluation.ranks import Counts

# `distinct` sorts the keys if there are fewer than one per this many pairs of a row and an item.
_SIZE_PER_KEY = 16


class SharedScores:
    """The row of scores that the users share.

    Attributes:
      scores: float64 [N + 1], by item id; entry 0 is ignored.
    """

    def __init__(self, scores: Float[np.ndarray, "N1"]):
        """Takes the scores, which must not change afterwards."""
        self.scores = scores

    @functools.cached_property
    def best_first(self) -> Int[np.ndarray, "N"]:
        """The item ids, best first, lower ids first among equals."""
        return (np.argsort(-self.scores[1:], kind="stable") + 1).astype(np.int32)

    @functools.cached_property
    def ascending(self) -> Float[np.ndarray, "N"]:
        """The scores of the items, ascending."""
        return self.scores[self.best_first[::-1]]


@dataclasses.dataclass(frozen=True)
class SparseScores:
    """Scores of B rows: the shared scores, except for some pairs of a row and an item.

    Attributes:
      shared: The scores of all other pairs.
      num_rows: B.
      keys: int64 [P], `row * (N + 1) + item` of each exception, ascending and distinct.
      values: float64 [P], the scores of the exceptions.
    """

    shared: SharedScores
    num_rows: int
    keys: Int[np.ndarray, "P"]
    values: Float[np.ndarray, "P"]

    @property
    def num_slots(self) -> int:
        """N + 1."""
        return len(self.shared.scores)

    def at(self, keys: Int[np.ndarray, "Q"]) -> Float[np.ndarray, "Q"]:
        """The scores of pairs of a row and an item, which are given as keys."""
        scores = self.shared.scores[keys % self.num_slots]
        found, places = _find(keys, self.keys)
        scores[found] = self.values[places]
        return scores

    def dense(self) -> Float[np.ndarray, "B N1"]:
        """All scores; without exceptions a read-only view of the shared row."""
        scores = np.broadcast_to(self.shared.scores, (self.num_rows, self.num_slots))
        if len(self.keys):
            scores = scores.copy()
            scores[np.divmod(self.keys, self.num_slots)] = self.values
        return scores


def _find(
    keys: Int[np.ndarray, "Q"], among: Int[np.ndarray, "P"]
) -> tuple[Bool[np.ndarray, "Q"], Int[np.ndarray, "F"]]:
    """Whether each key is in the ascending `among`, and the indices in `among` of those keys."""
    places = np.searchsorted(among, keys)
    found = places < len(among)
    found[found] = among[places[found]] == keys[found]
    return found, places[found]


def distinct(
    keys: Int[np.ndarray, "Q"], size: int
) -> tuple[Int[np.ndarray, "P"], Int[np.ndarray, "Q"]]:
    """The distinct keys, ascending, and the place of each key among them.

    Args:
      keys: From 0, below `size`.
      size: B x (N + 1).
    """
    if size > _SIZE_PER_KEY * len(keys):
        return np.unique(keys, return_inverse=True)
    # In a small catalogue flags of all pairs are ten times as fast as to sort the keys.
    occurs = np.zeros(size, bool)
    occurs[keys] = True
    return np.flatnonzero(occurs), np.cumsum(occurs)[keys] - 1


def weighted_sum(parts: Sequence[tuple[float, SparseScores]]) -> SparseScores:
    """The sum of scores, each with its weight; the shared scores of all must be 0."""
    first = parts[0][1]
    every = np.concatenate([part.keys for _, part in parts])
    keys, places = distinct(every, first.num_rows * first.num_slots)
    values, start = np.zeros(len(keys)), 0
    for weight, part in parts:
        values[places[start : start + len(part.keys)]] += weight * part.values
        start += len(part.keys)
    return dataclasses.replace(first, keys=keys, values=values)


class SparseScorer(abc.ABC):
    """A score function for `Evaluator.run_scores` whose scores are sparse."""

    @abc.abstractmethod
    def sparse(self, users: np.ndarray, positions: np.ndarray) -> SparseScores:
        """The scores of all items for the targets at `positions`, [B].

        Args:
          users: int [B], the targets' users.
          positions: int [B], the targets' event indices. The events before them are read.
        """

    @abc.abstractmethod
    def sizes(self, users: np.ndarray, positions: np.ndarray) -> Int[np.ndarray, "B"]:
        """How many numbers `sparse` reads for each row, so that a caller can bound its memory."""

    def __call__(self, users: np.ndarray, positions: np.ndarray) -> Float[np.ndarray, "B N1"]:
        """All scores, float64 [B, N + 1]."""
        return self.sparse(users, positions).dense()


def count(
    scores: SparseScores,
    targets: Int[np.ndarray, "B"],
    seen: Int[np.ndarray, "P"] | None = None,
    *,
    top_k: int = 0,
) -> Counts:
    """Counts as `ranks.count_scores` does.

    Args:
      scores: The scores.
      targets: Item ids from 1 to N.
      seen: The keys of the items that each row has seen, ascending and distinct; None: none.
      top_k: K, the number of best candidates to return; 0 for none.
    """
    num_rows, num_slots, shared = scores.num_rows, scores.num_slots, scores.shared
    target_keys = np.arange(num_rows) * num_slots + targets
    own = scores.at(target_keys)
    rows, items = np.divmod(scores.keys, num_slots)

    def number(rows: np.ndarray, which: np.ndarray) -> np.ndarray:
        return np.bincount(rows[which], minlength=num_rows)

    # ------------------------------------------ all items by their shared scores, then corrected
    above = np.searchsorted(shared.ascending, own, "right")
    greater = num_slots - 1 - above
    equal = above - np.searchsorted(shared.ascending, own, "left")
    for values, sign in ((shared.scores[items], -1), (scores.values, 1)):
        greater = greater + sign * number(rows, values > own[rows])
        equal = equal + sign * number(rows, values == own[rows])
    # ------------------------------------------ the seen items, without the target
    if seen is None:
        seen = np.zeros(0, np.int64)
    target_seen, _ = _find(target_keys, seen)
    other_keys = seen[~_find(seen, target_keys)[0]]
    seen_rows, seen_scores = other_keys // num_slots, scores.at(other_keys)
    counts: dict[str, Any] = {}
    if top_k:
        none = np.zeros(0, np.int64)
        counts = {"top": _best(scores, none, top_k), "top_unseen": _best(scores, seen, top_k)}
    counts |= dict(
        greater=greater,
        equal=equal - 1,
        seen=np.bincount(seen_rows, minlength=num_rows),
        seen_greater=number(seen_rows, seen_scores > own[seen_rows]),
        seen_equal=number(seen_rows, seen_scores == own[seen_rows]),
        target_seen=target_seen,
        target_score=own,
        finite=(number(rows, ~np.isfinite(scores.values)) == 0)
        & np.isfinite(shared.ascending[[0, -1]]).all(),
    )
    return Counts(**counts)


def _best(scores: SparseScores, removed: np.ndarray, top_k: int) -> np.ndarray:
    """Item ids [B, K] of the best scores, best first; of equal scores, the lower id first.

    Args:
      scores: The scores.
      removed: The keys of items that are no candidates, ascending.
      top_k: K.
    """
    num_slots, shared = scores.num_slots, scores.shared
    best = np.zeros((scores.num_rows, top_k), np.int64)
    bounds = num_slots * np.arange(scores.num_rows + 1)
    exceptions, removals = np.searchsorted(scores.keys, bounds), np.searchsorted(removed, bounds)
    stays = ~_find(scores.keys, removed)[0]
    for row in range(scores.num_rows):
        of_row = slice(exceptions[row], exceptions[row + 1])
        away = removed[removals[row] : removals[row + 1]]
        keys, values = (array[of_row][stays[of_row]] for array in (scores.keys, scores.values))
        least = -np.inf
        if len(keys) >= top_k:
            least = np.partition(values, -top_k)[-top_k]
            keys, values = keys[values >= least], values[values >= least]
        if least <= shared.scores[shared.best_first[0]]:
            # So many of the best shared scores that K of them are neither exceptions nor removed.
            number = top_k + of_row.stop - of_row.start + len(away)
            others = shared.best_first[:number] + bounds[row]
            free = ~_find(others, scores.keys[of_row])[0] & ~_find(others, away)[0]
            others = others[free][:top_k]
            keys = np.concatenate([keys, others])
            values = np.concatenate([values, shared.scores[others - bounds[row]]])
        keys = keys[np.lexsort((keys, -values))[:top_k]]
        best[row, : len(keys)] = keys - bounds[row]
    return best
