"""Histories: whose are asked for and where they end, and their rows for evaluation and serving."""

from collections.abc import Collection, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int

from linseqrec.data.dataset import Dataset
from linseqrec.data.splits import Split
from linseqrec.errors import UserError, first_ten
from linseqrec.events import Events

# Where a history ends: before a validation target, before a test target, or, with "none", after the
# last event of the user.
Before = Literal["validation", "test", "none"]


class RequestError(UserError, ValueError):
    """The data set does not hold the requested users, items or histories, which it names."""


def find_users(ids: Sequence[str], user_ids: np.ndarray) -> Int[np.ndarray, "R"]:
    """The indices of users, int64 [R], in the order of `ids`, each user once.

    Args:
      ids: The log's own ids of the users.
      user_ids: The ids of all users, by index (`Dataset.user_ids`).

    Raises:
      RequestError: The data set has no user with some of these ids; names the ids.
    """
    return _indices("users", list(dict.fromkeys(ids)), user_ids)


def find_items(ids: Sequence[str], item_ids: np.ndarray) -> Int[np.ndarray, "R"]:
    """The numbers of items, int64 [R], one for each id; "" is no item, 0.

    Args:
      ids: The log's own ids of the items.
      item_ids: The ids of all items, by number (`Dataset.item_ids`).

    Raises:
      RequestError: The data set has no item with some of these ids; names the ids.
    """
    return _indices("items", ids, item_ids)


def _indices(what: str, ids: Sequence[str], all_ids: np.ndarray) -> np.ndarray:
    index_of = {str(each): index for index, each in enumerate(all_ids)}
    if unknown := [each for each in ids if each not in index_of]:
        raise RequestError(f"no such {what} in the data set: {first_ten(unknown)}")
    return np.array([index_of[each] for each in ids], np.int64)


def flag_items(ids: Collection[str], item_ids: np.ndarray) -> Bool[np.ndarray, "N1"]:
    """Whether each item of the catalogue is among the ids; bool [N + 1], by index.

    Ids that the data set does not have are passed over: a list of what is in stock may hold items
    that nobody has met yet.

    Args:
      ids: The log's own ids of items.
      item_ids: The ids of all items, by index; index 0 is padding.

    Raises:
      RequestError: The data set has none of these ids.
    """
    known = np.isin(item_ids, list(ids))
    known[0] = False
    if not known.any():
        raise RequestError(f"no such items in the data set: {first_ten(list(ids))}")
    return known


def histories_before(
    dataset: Dataset,
    split: Split,
    before: Before,
    requested_users: Int[np.ndarray, "R"] | None = None,
) -> tuple[Int[np.ndarray, "M"], Int[np.ndarray, "M"]]:
    """The histories before the targets of a split, or the whole histories of users.

    Args:
      dataset: The events.
      split: A split of `dataset`.
      before: The targets at which the histories end. "none": after the last event of each user.
      requested_users: int64 [R], indices of users, each one once. None: all users with such a
        history.

    Returns:
      users: int64 [M], the user of each history, in the order of `requested_users`. The histories
        of one user are in time order.
      ends: int64 [M], event indices: a history is the user's events before its end.

    Raises:
      RequestError: No user has such a history, or a requested user has none; names the users.
    """
    if before == "none":
        lengths = np.diff(dataset.offsets)
        users, ends = np.flatnonzero(lengths), np.asarray(dataset.offsets[1:])[lengths > 0]
        required = "event"
    else:
        targets = getattr(split, before)
        users, ends = np.asarray(targets.users), np.asarray(targets.positions)
        required = f"{before} target in the {split.name} split"
    if not len(users):
        raise RequestError(
            f"there is no {required}, so no history ends there: choose another split"
        )
    if requested_users is None:
        return users, ends
    first = np.searchsorted(users, requested_users, "left")
    last = np.searchsorted(users, requested_users, "right")
    without_history = requested_users[first == last]
    if len(without_history):
        ids = dataset.user_ids()[without_history]
        raise RequestError(f"users without {required}: {first_ten(ids)}; leave them out")
    rows = np.concatenate([np.arange(begin, end) for begin, end in zip(first, last, strict=True)])
    return users[rows], ends[rows]


def request_times(
    dataset: Dataset, before: Before, ends: Int[np.ndarray, "M"], *, known: bool, now: int | None
) -> Int[np.ndarray, "M"] | None:
    """The time of the request after each history, in the log's own seconds.

    Args:
      dataset: The events.
      before: Where the histories end. Before a target, the request time is the target's time.
      ends: int64 [M], event indices: a history is the user's events before its end.
      known: Whether the model reads request times.
      now: The time of all requests, for histories of all events of a user; else None.

    Returns:
      int64 [M]; None if the model does not read request times.

    Raises:
      RequestError: `now` is missing, does not apply, or is earlier than an event of the histories.
    """
    if now is not None and (before != "none" or not known):
        reason = (
            "this run's data.request_time is 'hidden'"
            if not known
            else f"the request time before a {before} target is the target's own time"
        )
        raise RequestError(f"now is {now}, but {reason}: leave it out")
    if not known:
        return None
    times = np.asarray(dataset.timestamps)
    if before != "none":
        return times[ends].astype(np.int64)
    first, last = int(times[ends - 1].max()), dataset.origin + np.iinfo(np.int32).max
    if now is None or not first <= now <= last:
        raise RequestError(
            f"now is {'not given' if now is None else now}, and this run's data.request_time is "
            f"'known': it must be the time of the request in the log's own seconds, from {first}, "
            f"the time of the last event of these histories, to {last}"
        )
    return np.full(len(ends), now, np.int64)


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
