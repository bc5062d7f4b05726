"""Rows of user histories, as evaluation and serving read them."""

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
    """The last `length` events before each end, one row each, padded on the right.

    One fancy index reads the whole batch, so the cost is that of the [B, T] block.

    Args:
      dataset: The events.
      users: int [B], indices of users.
      ends: int [B], event indices in the data set. Row i holds events of `users[i]` before
        `ends[i]`.
      length: T, the width of the rows. None: the longest of these histories, at least 1.
      request_times: int [B], the time of the request after each history, in the log's seconds.
        None: request times are hidden.

    Returns:
      NumPy `Events` [B, T]: segment 1, positions from 0, timestamps in seconds since
      `dataset.origin`. A row without history is all padding. The request time of an event is the
      time of the next event; that of the last event is the row's entry of `request_times`.

    Raises:
      ValueError: An end lies outside its user's events, or `length` is below 1.
    """
    users, ends = np.asarray(users), np.asarray(ends)
    starts = np.asarray(dataset.offsets)[users]
    outside = (ends < starts) | (ends > np.asarray(dataset.offsets)[users + 1])
    if outside.any():
        row = int(np.flatnonzero(outside)[0])
        raise ValueError(
            f"ends[{row}] is {int(ends[row])}: it must be between {int(starts[row])} and "
            f"{int(dataset.offsets[users[row] + 1])}, the events of user {int(users[row])}"
        )
    if length is None:
        length = max(1, int((ends - starts).max(initial=0)))
    if length < 1:
        raise ValueError(f"length is {length}: it must be at least 1, or None")
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
