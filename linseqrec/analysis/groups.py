"""Semantic groups of items: in a history, groups recur more often than items."""

import numpy as np
from scipy import sparse
from scipy.cluster.vq import kmeans2
from scipy.sparse.linalg import svds

from linseqrec.data.dataset import Dataset
from linseqrec.data.source import Source

# Events at most this far apart occur together.
_WINDOW = 5
_DIMENSIONS = 32
# Enough for k-means to converge with thousands of items. SciPy's default of 10 leaves an eighth of
# the items in other clusters.
_ITERATIONS = 100


def item_groups(source: Source, *, num_groups: int = 64) -> np.ndarray:
    """Assigns each item to a group by the data alone, so that all models have the same groups.

    A generated world has its own categories. The items of a log are clustered by their
    `cooccurrence_vectors`: k-means on the unit sphere, from a fixed seed. (SinkRec's first-level
    codes are groups of windows, not of items, and no other model has them.)

    Args:
      source: The events.
      num_groups: The number of clusters, or less if fewer items differ.

    Returns:
      int64 [N + 1], groups from 0; -1 for the padding item.
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
    """Item vectors from co-occurrences, without a model.

    The vectors are U √S of a singular value decomposition (Levy & Goldberg, NIPS 2014). The matrix
    is the positive pointwise mutual information max(0, log p(i, j) / (p(i) p(j))) of different
    items within 5 events of each other in a history. All events count, because no model is trained
    on the vectors.

    On generated worlds, clusters of the vectors have a normalised mutual information of .96 to .98
    with the categories (by chance .57; worlds `quick`, `repetition`, `drift` and `ultra_long`).

    Args:
      dataset: The events.

    Returns:
      float64 [N + 1, D], D = 32, or less for a small catalogue. Padding has zeros, and so has an
      item that occurs near no other.
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
    # ARPACK starts from a random vector unless it is given one.
    left, values, _ = svds(positive.tocsr(), min(_DIMENSIONS, slots - 1), v0=np.ones(slots))
    left[occurs == 0] = 0  # They are 0 up to rounding.
    return left * np.sqrt(values)


def most_frequent_groups(
    groups: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The most frequent groups of each row, and as many of its other groups, chosen at random.

    Args:
      groups: int [B, T], the group of each event; -1 is none.
      count: m.
      rng: Chooses the other groups, and the order of equally frequent ones.

    Returns:
      frequent: bool [B, m, T], the events of each of the m most frequent groups.
      others: bool [B, m, T], the events of each of m other groups. A row with fewer groups has
        False for the groups that it lacks.
    """
    rows, time = groups.shape
    frequent, others = np.zeros((2, rows, count, time), bool)
    for row, own in enumerate(groups):
        kinds, counts = np.unique(own[own >= 0], return_counts=True)
        order = np.lexsort((rng.random(len(kinds)), -counts))
        for chosen, members in (
            (order[:count], frequent),
            (rng.permutation(order[count:]), others),
        ):
            for slot, kind in enumerate(kinds[chosen[:count]]):
                members[row, slot] = own == kind
    return frequent, others
