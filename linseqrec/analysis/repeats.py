"""How much of a history repeats, and how long ago the target's transition occurred last."""

import numpy as np

from linseqrec.data.dataset import Dataset

# Lower bounds of the buckets. The lowest age is 1, but buckets begin at 0.
SHARE_EDGES = (0.0, 0.1, 0.25, 0.5, 0.75)
AGE_EDGES = (0, 10, 20, 40, 80, 160)
# The bucket of targets that never followed their history's last item before.
NEVER = "never"


def share_of_repeats(dataset: Dataset, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """The share of the events before each target that repeat an earlier item of the history.

    Args:
      dataset: The events.
      users: [M], the user of each target.
      positions: [M], the absolute index of each target.

    Returns:
      float64 [M], 0 to 1.
    """
    starts = np.asarray(dataset.offsets)[users]
    distinct = [
        len(np.unique(dataset.items[start:end]))
        for start, end in zip(starts, positions, strict=True)
    ]
    return 1 - np.asarray(distinct) / np.maximum(positions - starts, 1)


def transition_ages(dataset: Dataset, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """How many events ago the target's item last followed the history's last item.

    A model must recall at least as many events to know the target from the history alone.

    Args:
      dataset: The events.
      users: [M], the user of each target.
      positions: [M], the absolute index of each target.

    Returns:
      float64 [M], at least 1, which is an item that follows itself for the second time in a row.
      NaN where the target never followed that item, or has no history.
    """
    ages = np.full(len(users), np.nan)
    starts = np.asarray(dataset.offsets)[users]
    for row, (start, end) in enumerate(zip(starts, positions, strict=True)):
        history, target = dataset.items[start:end], dataset.items[end]
        if len(history) > 1:
            followed = np.flatnonzero((history[:-1] == history[-1]) & (history[1:] == target))
            if len(followed):
                ages[row] = len(history) - 1 - followed[-1]
    return ages
