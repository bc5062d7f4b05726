"""Semantic groups of items: what recurs in a history is a group more often than an item."""

import numpy as np
from scipy import sparse
from scipy.cluster.vq import kmeans2
from scipy.sparse.linalg import svds

from linseqrec.data.dataset import Dataset
from linseqrec.data.source import Source

# Events that are at most so far apart occur together.
_WINDOW = 5
_DIMENSIONS = 32
# k-means has converged by then on logs of thousands of items; SciPy's default of 10 leaves an
# eighth of them in other clusters.
_ITERATIONS = 100


def item_groups(source: Source, *, num_groups: int = 64) -> np.ndarray:
    """Assigns each item to a group, by the data alone: whatever is compared has the same groups.

    A generated world's own categories; else clusters of the items' `cooccurrence_vectors`: k-means
    on the unit sphere, from a fixed seed. (SinkRec's first-level codes are groups too, but of
    windows, and no other model has them.)

    Args:
      source: The events.
      num_groups: Clusters; fewer where fewer items differ.

    Returns:
      int64 [N + 1], groups from 0; the padding item's is -1.
    """
    if source.world is not None:
        groups = source.world.catalogue.category.astype(np.int64)
    else:
        vectors = cooccurrence_vectors(source.dataset)[1:]
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        count = min(num_groups, len(np.unique(vectors, axis=0)))
        rng = np.random.default_rng(0)
        _, labels = kmeans2(vectors, count, iter=_ITERATIONS, minit="++", rng=rng)
        groups = np.concatenate([[-1], labels])
    groups = groups.copy()
    groups[0] = -1
    return groups


def cooccurrence_vectors(dataset: Dataset) -> np.ndarray:
    """Item vectors without a model: who occurs near whom, factorised.

    The positive pointwise mutual information max(0, log p(i, j) / (p(i) p(j))) of different items
    within 5 events of each other in a history, U √S of its singular value decomposition (Levy &
    Goldberg, NIPS 2014). All events count: nothing is trained on them. Clustered into as many
    groups as a generated world has categories, they are these to a normalised mutual information
    of .96 to .98 (by chance .57; worlds `quick`, `repetition`, `drift` and `ultra_long`).

    Args:
      dataset: The events.

    Returns:
      float64 [N + 1, D], D = 32, or less for a small catalogue; zeros for an item that occurs near
      no other, and for padding.
    """
    items, slots = np.asarray(dataset.items).astype(np.int64), dataset.num_items + 1
    users = np.repeat(np.arange(dataset.num_users), np.diff(dataset.offsets))
    counts = sparse.csr_array((slots, slots))
    for lag in range(1, _WINDOW + 1):
        paired = (users[lag:] == users[:-lag]) & (items[lag:] != items[:-lag])
        pair = items[lag:][paired], items[:-lag][paired]
        counts += sparse.coo_array((np.ones(paired.sum()), pair), (slots, slots)).tocsr()
    together = (counts + counts.T).tocoo()
    row, column = together.coords
    occurs = np.bincount(row, together.data, minlength=slots)
    information = np.log(together.data * together.data.sum() / (occurs[row] * occurs[column]))
    positive = sparse.coo_array((np.maximum(information, 0), together.coords), (slots, slots))
    if not positive.data.any():
        return np.zeros((slots, 1))
    # The first vector is fixed, or ARPACK draws another at every call.
    left, values, _ = svds(positive.tocsr(), min(_DIMENSIONS, slots - 1), v0=np.ones(slots))
    left[occurs == 0] = 0  # as they are but for rounding
    return left * np.sqrt(values)


def most_frequent_groups(
    groups: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Each row's most frequent groups, and as many of its others by chance.

    Args:
      groups: int [B, T], the group of each event; -1 is none.
      count: m.
      rng: Of the others, and of the order among equals.

    Returns:
      Two bool [B, m, T]: which events are of each of the m most frequent groups, and of each of m
      others that occur. A row with fewer groups has rows of False.
    """
    rows, time = groups.shape
    frequent, others = np.zeros((2, rows, count, time), bool)
    for row, held in enumerate(groups):
        kinds, counts = np.unique(held[held >= 0], return_counts=True)
        order = np.lexsort((rng.random(len(kinds)), -counts))
        for chosen, kept in ((order[:count], frequent), (rng.permutation(order[count:]), others)):
            for slot, kind in enumerate(kinds[chosen[:count]]):
                kept[row, slot] = held == kind
    return frequent, others
