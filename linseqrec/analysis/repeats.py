"""How much of a history repeats itself."""

import numpy as np

from linseqrec.data.dataset import Dataset

# Lower bounds of the buckets.
SHARE_EDGES = (0.0, 0.1, 0.25, 0.5, 0.75)


def share_of_repeats(dataset: Dataset, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """The share of the events before each target whose item the history held already.

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
