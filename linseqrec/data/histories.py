"""Histories before given events, gathered into rows: what evaluation and serving read."""

from typing import Any

import numpy as np

from linseqrec.data.dataset import Dataset
from linseqrec.events import Events


def gather_histories(
    dataset: Dataset,
    users: np.ndarray,
    ends: np.ndarray,
    length: int | None,
    request_times: np.ndarray | None = None,
) -> Events:
    """Gathers the last `length` events before each end, one row each, padded on the right.

    One fancy index for the whole batch: the cost is that of the [B, T] block it returns.

    Args:
      dataset: Where the events are.
      users: [B], indices into `dataset.offsets`.
      ends: [B], absolute event indices; row i holds events of `users[i]` up to, without, `ends[i]`.
      length: T, the width of the rows; None takes the longest of these histories (at least 1).
      request_times: int [B], the log's own time at which the prediction after each history is asked
        for. None: request times are hidden.

    Returns:
      NumPy `Events` [B, T]: segment 1, positions from 0, timestamps since `dataset.origin`. A row
      without history is all padding. Where request times are known, each event but the last one
      carries the next event's time.

    Raises:
      ValueError: An end lies outside its user's events, or `length` is not positive.
    """
    users, ends = np.asarray(users), np.asarray(ends)
    starts = np.asarray(dataset.offsets)[users]
    outside = (ends < starts) | (ends > np.asarray(dataset.offsets)[users + 1])
    if outside.any():
        row = int(np.flatnonzero(outside)[0])
        raise ValueError(
            f"row {row}: event {int(ends[row])} does not belong to user {int(users[row])}, whose "
            f"events are {int(starts[row])} to {int(dataset.offsets[users[row] + 1])}"
        )
    if length is None:
        length = max(1, int((ends - starts).max(initial=0)))
    if length < 1:
        raise ValueError(f"length must be at least 1, got {length}")
    starts = np.maximum(starts, ends - length)
    slots = np.arange(length)
    real = slots < (ends - starts)[:, None]
    index = np.where(real, starts[:, None] + slots, 0)

    def fill(values: np.ndarray) -> Any:
        return np.where(real, values, 0).astype(np.int32)

    requests = None
    if request_times is not None:
        next_events = np.minimum(index + 1, dataset.num_events - 1)
        last = slots == (ends - starts)[:, None] - 1
        times = np.where(last, np.asarray(request_times)[:, None], dataset.timestamps[next_events])
        requests = fill(times - dataset.origin)
    return Events(
        items=fill(dataset.items[index]),
        timestamps=fill(dataset.timestamps[index] - dataset.origin),
        segment_ids=fill(real),
        positions=fill(slots),
        request_times=requests,
    )
