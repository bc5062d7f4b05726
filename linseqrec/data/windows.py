"""Pieces: the stretches of a user's training events that rows are made of.

A piece of L inputs predicts, at each slot, the event after it. Which pieces there are is a property
of the split and the row length; how they share rows is `packing.py`.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Pieces:
    """Stretches of consecutive events of one user.

    Slot j of a piece reads event `starts + j` and predicts event `starts + j + 1`.

    Attributes:
      starts: int64 [P], index of the first input event.
      lengths: int32 [P], number of inputs, at least 1.
      skips: int32 [P], number of leading slots that are context only: their prediction is another
        piece's to make, or none's.
    """

    starts: np.ndarray
    lengths: np.ndarray
    skips: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    def followed_by(self, other: "Pieces") -> "Pieces":
        """These pieces, then those of `other`."""
        return Pieces(
            np.concatenate([self.starts, other.starts]),
            np.concatenate([self.lengths, other.lengths]),
            np.concatenate([self.skips, other.skips]),
        )


def cut_windows(
    starts: np.ndarray, ends: np.ndarray, length: int, stride: int | None = None
) -> Pieces:
    """Windows that predict every training event once, except each user's first.

    A user's windows are aligned to the end of his training events: the newest is full, the oldest
    takes what is left. With `stride = length` they are disjoint. With a smaller stride each window
    predicts its last `stride` events (the oldest window: all of its events), so that every
    prediction but the first `length - stride` of a user sees over `length - stride` events.

    Args:
      starts: int64 [U], index of each user's first event.
      ends: int64 [U], index one past each user's last training event.
      length: T, slots in a window.
      stride: How far apart windows stand, in 1..length; None is `length`.

    Returns:
      The windows, user by user, newest first. A user with fewer than two training events has none.

    Raises:
      ValueError: `length` or `stride` out of range.

    Source: ours.
    """
    stride = length if stride is None else stride
    if length < 1:
        raise ValueError(f"length must be at least 1, got {length}")
    if not 1 <= stride <= length:
        raise ValueError(f"stride must be between 1 and length={length}, got {stride}")
    inputs = np.maximum(ends - starts - 1, 0)
    counts = np.where(inputs > 0, 1 + -(-np.maximum(inputs - length, 0) // stride), 0)
    users, age = _enumerate(counts)
    end = inputs[users] - age * stride
    begin = np.maximum(end - length, 0)
    oldest = age == counts[users] - 1
    skips = np.where(oldest, 0, end - stride - begin)
    return Pieces(starts[users] + begin, (end - begin).astype(np.int32), skips.astype(np.int32))


def cut_in_line(
    starts: np.ndarray,
    ends: np.ndarray,
    length: int,
    stride: int | None,
    generator: np.random.Generator,
) -> tuple[Pieces, np.ndarray]:
    """Cuts users at random places, so that the same number of rows always holds all of them.

    The users stand one behind another, in random order, around a circle of all their inputs. From a
    random place on, the circle is cut every `stride` inputs. Each user is cut at a phase that is
    uniform in 0..stride - 1, and a row holds the end of one user and the beginning of the next.
    A piece that does not begin its user also reads up to `length - stride` events before it.

    Args:
      starts: int64 [U], index of each user's first event.
      ends: int64 [U], index one past each user's last training event; each user has more than
        `length` inputs (`ends - starts - 1`), so that a row holds pieces of two users at most.
      length: T, slots in a row.
      stride: Predictions in a row, in 1..length; None is `length`.
      generator: Of the order and the first cut.

    Returns:
      pieces: Every training event is predicted once, except each user's first. Row after row.
      counts: int64 [R], pieces in each row; R is the number of inputs over `stride`, rounded up.

    Source: ours.
    """
    stride = length if stride is None else stride
    order = generator.permutation(len(starts))
    inputs = (ends - starts - 1)[order]
    firsts, total = np.cumsum(inputs) - inputs, int(inputs.sum())
    origin = int(generator.integers(total))
    cuts = (origin + np.arange(0, total, stride)) % total
    places = np.unique(np.concatenate([firsts, cuts]))
    rows = (places - origin) % total // stride
    by_row = np.argsort(rows, kind="stable")
    users = np.searchsorted(firsts, places, side="right") - 1
    begin, end = places - firsts[users], np.append(places[1:], total) - firsts[users]
    context = np.minimum(begin, length - stride)
    pieces = Pieces(
        (starts[order][users] + begin - context)[by_row],
        (end - begin + context).astype(np.int32)[by_row],
        context.astype(np.int32)[by_row],
    )
    return pieces, np.bincount(rows)


def every_prefix(starts: np.ndarray, ends: np.ndarray, length: int) -> Pieces:
    """One piece for every training event but each user's first: it is predicted, once, at the end.

    Args:
      starts: int64 [U], index of each user's first event.
      ends: int64 [U], index one past each user's last training event.
      length: T, the most events of history a prediction sees.

    Returns:
      The pieces, user by user, oldest first; 16 bytes for each event predicted.

    Raises:
      ValueError: `length` below 1.

    Source: RecGRELA's released training mode (RecBole's data augmentation).
    """
    if length < 1:
        raise ValueError(f"length must be at least 1, got {length}")
    users, index = _enumerate(np.maximum(ends - starts - 1, 0))
    history = index + 1
    lengths = np.minimum(history, length).astype(np.int32)
    return Pieces(starts[users] + history - lengths, lengths, lengths - np.int32(1))


def _enumerate(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For `counts[u]` things of each user u: the user of each, and its number from 0 within him."""
    users = np.repeat(np.arange(len(counts)), counts)
    return users, np.arange(len(users)) - np.repeat(np.cumsum(counts) - counts, counts)
