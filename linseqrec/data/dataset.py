"""The dataset folder: a prepared log as memory-mapped arrays beside its card."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Every user's events in time order, users one after another.

    Attributes:
      items: int32 [E], item ids from 1 (0 is padding and never stands here).
      timestamps: int64 [E], seconds since the epoch of the log, non-decreasing within a user.
      offsets: int64 [U + 1]; user u's events are `offsets[u]:offsets[u + 1]`.
      num_items: N; ids run from 1 to N.
      card: What is known of the data: source, filters, counts, rates, sha256 (see `card.py`).
      folds: int8 [E] or None; 0 train, 1 validation, 2 test, where the log brought its own split.
      folder: Where it was opened from; None for a data set in memory.
    """

    items: np.ndarray
    timestamps: np.ndarray
    offsets: np.ndarray
    num_items: int
    card: dict[str, Any]
    folds: np.ndarray | None = None
    folder: Path | None = None

    @property
    def num_users(self) -> int:
        """U, the number of users."""
        return len(self.offsets) - 1

    @property
    def num_events(self) -> int:
        """E, the number of events."""
        return len(self.items)

    @property
    def origin(self) -> int:
        """The first event's timestamp, in seconds: `Events.timestamps` count from it."""
        return int(self.card["time"]["first"])
