"""Semantic groups of items: what recurs in a history is a group more often than an item."""

import numpy as np
from scipy.cluster.vq import kmeans2

from linseqrec.data.source import Source


def item_groups(source: Source, table: np.ndarray, *, num_groups: int = 64) -> np.ndarray:
    """Assigns each item to a group.

    A generated world's own categories; else clusters of a model's item vectors: k-means on the unit
    sphere, from a fixed seed. (SinkRec's first-level codes are groups too, but of windows, and no
    other model has them; models that are compared need the same groups.)

    Args:
      source: The events.
      table: float [N + 1, D], item vectors; row 0 is padding.
      num_groups: Clusters; fewer where the catalogue is smaller.

    Returns:
      int64 [N + 1], groups from 0; the padding item's is -1.
    """
    if source.world is not None:
        groups = source.world.catalogue.category.astype(np.int64)
    else:
        vectors = np.asarray(table, np.float64)[1:]
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        count = min(num_groups, len(vectors))
        _, labels = kmeans2(vectors, count, minit="++", rng=np.random.default_rng(0))
        groups = np.concatenate([[-1], labels])
    groups = groups.copy()
    groups[0] = -1
    return groups


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
