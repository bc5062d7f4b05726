"""Whom to recommend to, and after which events: asked for by the log's own ids."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Int

from linseqrec.data.dataset import Dataset
from linseqrec.data.splits import Split
from linseqrec.errors import UserError

# Whose targets' histories are read; "none": all events of a user.
Before = Literal["validation", "test", "none"]


class RequestError(UserError, ValueError):
    """What is asked for is not in the data set: names it."""


def original_ids(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """The log's own ids, text: of users [U], and of items [N + 1], of which entry 0 is padding's.

    A data set in memory has none: there they are the numbers, as `write_world` writes them.
    """
    if dataset.folder is None:
        return np.arange(dataset.num_users).astype(str), np.array(
            ["", *map(str, range(1, dataset.num_items + 1))]
        )
    return dataset.user_ids(), dataset.item_ids()


def find_users(ids: Sequence[str], user_ids: np.ndarray) -> Int[np.ndarray, " R"]:
    """The indices of the users with the given ids, each once, in their order.

    Args:
      ids: Original ids.
      user_ids: Of all users, by index.

    Raises:
      RequestError: If there are none of some of these ids; names them.
    """
    index = {str(user): number for number, user in enumerate(user_ids)}
    unknown = [user for user in ids if user not in index]
    if unknown:
        raise RequestError(f"no such users in the data set: {_some(unknown)}")
    return np.array([index[user] for user in dict.fromkeys(ids)], np.int64)


def histories_before(
    dataset: Dataset, split: Split, before: Before, asked: Int[np.ndarray, " R"] | None = None
) -> tuple[Int[np.ndarray, " M"], Int[np.ndarray, " M"]]:
    """Users and ends of the histories before a split's targets, or of all events.

    Args:
      dataset: The events.
      split: Of them.
      before: Which targets; "none": after the last event of each user.
      asked: Indices of users, each once; None: everyone who has such a history.

    Returns:
      users: int64 [M], in the order asked for; a user's targets in time order.
      ends: int64 [M], absolute event indices: each history is what comes before.

    Raises:
      RequestError: If there is no such history, at all or of a user asked for; names the users.
    """
    if before == "none":
        lengths = np.diff(dataset.offsets)
        users, ends = np.flatnonzero(lengths), np.asarray(dataset.offsets[1:])[lengths > 0]
        what = "event"
    else:
        targets = getattr(split, before)
        users, ends = np.asarray(targets.users), np.asarray(targets.positions)
        what = f"{before} target in the {split.name} split"
    if not len(users):
        raise RequestError(f"there is no {what}: nothing to recommend after")
    if asked is None:
        return users, ends
    first, behind = (np.searchsorted(users, asked, side) for side in ("left", "right"))
    without = asked[first == behind]
    if len(without):
        ids = original_ids(dataset)[0][without]
        raise RequestError(f"users without {what}: {_some(ids)}; leave them out")
    rows = np.concatenate([np.arange(a, b) for a, b in zip(first, behind, strict=True)])
    return users[rows], ends[rows]


def request_times(
    dataset: Dataset, before: Before, ends: Int[np.ndarray, " M"], *, known: bool, now: int | None
) -> Int[np.ndarray, " M"] | None:
    """When the lists after histories are asked for, on the log's own clock.

    Args:
      dataset: The events.
      before: What the histories end before.
      ends: Absolute event indices; each history is what comes before.
      known: Whether the model is told request times.
      now: The time of the requests after all events of a user; None with a target, whose own time
        it is.

    Returns:
      int64 [M]; None where the model is not told.

    Raises:
      RequestError: If `now` is missing, of no use, or earlier than an event of the histories.
    """
    if now is not None and (before != "none" or not known):
        reason = (
            "this run's data.request_time is 'hidden'"
            if not known
            else f"a list before a {before} target is asked for at the target's own time"
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
            f"the last event of these histories, to {last}"
        )
    return np.full(len(ends), now, np.int64)


def _some(names: Sequence[str] | np.ndarray) -> str:
    """The first ten names, and how many more there are."""
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(map(str, names[:10])) + more
