"""Pieces: stretches of a user's training events, which later form the rows of a batch.

Each slot of a piece predicts the next event. This module cuts histories into pieces of at most one
row; `packing.py` decides which pieces share a row.
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
      skips: int32 [P], number of leading slots that are context only: this piece does not predict
        their next events.
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
    """Windows that predict every training event once, except the first event of each user.

    The windows of a user are aligned to his last training event: the newest window is full, the
    oldest may be shorter. Windows with `stride = length` are disjoint. With a smaller stride, a
    window predicts its last `stride` events, and the oldest window predicts all of its events.
    Every target then has more than `length - stride` events of context, except the first
    `length - stride` targets of a user.

    Args:
      starts: int64 [U], index of each user's first event.
      ends: int64 [U], index one past each user's last training event.
      length: T, slots in a window.
      stride: Distance between the windows of a user, in 1..length. None: `length`.

    Returns:
      The windows, user by user, newest first. A user with fewer than two training events has none.

    Raises:
      ValueError: `length` or `stride` is out of range.

    Source: ours.
    """
    stride = length if stride is None else stride
    if length < 1:
        raise ValueError(f"length is {length}: it must be at least 1")
    if not 1 <= stride <= length:
        raise ValueError(f"stride is {stride}: it must be between 1 and length={length}")
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
    """Pieces cut at random events, in rows whose number does not depend on the random draw.

    The function lays the inputs of all users on a circle, user after user in random order. From a
    random input on, it cuts the circle after every `stride` inputs; each stretch is one row. A row
    thus holds a piece of one user, or the last piece of a user and the first of the next one. The
    cut of each user is uniform over 0..stride - 1. A piece that does not begin with its user's
    first event also reads up to `length - stride` earlier events as context.

    Args:
      starts: int64 [U], index of each user's first event.
      ends: int64 [U], index one past each user's last training event. Each user must have more
        than `length` inputs, `ends - starts - 1`, so that a row holds at most two users.
      length: T, slots in a row.
      stride: Predictions in a row, in 1..length. None: `length`.
      generator: Draws the order of the users and the first cut.

    Returns:
      pieces: The pieces, row after row. They predict every training event once, except the first
        event of each user.
      counts: int64 [R], number of pieces in each row. R is the number of inputs divided by
        `stride`, rounded up.

    Source: ours.
    """
    stride = length if stride is None else stride
    order = generator.permutation(len(starts))
    inputs = (ends - starts - 1)[order]
    # `firsts`, `cuts` and `piece_firsts` are positions on the circle of `total` inputs.
    firsts, total = np.cumsum(inputs) - inputs, int(inputs.sum())
    origin = int(generator.integers(total))
    cuts = (origin + np.arange(0, total, stride)) % total
    piece_firsts = np.unique(np.concatenate([firsts, cuts]))
    rows = (piece_firsts - origin) % total // stride
    by_row = np.argsort(rows, kind="stable")
    users = np.searchsorted(firsts, piece_firsts, side="right") - 1
    begin = piece_firsts - firsts[users]
    end = np.append(piece_firsts[1:], total) - firsts[users]
    context = np.minimum(begin, length - stride)
    pieces = Pieces(
        (starts[order][users] + begin - context)[by_row],
        (end - begin + context).astype(np.int32)[by_row],
        context.astype(np.int32)[by_row],
    )
    return pieces, np.bincount(rows)


def every_prefix(starts: np.ndarray, ends: np.ndarray, length: int) -> Pieces:
    """One piece per training event, which predicts this event in its last slot.

    The first event of each user has no history and no piece.

    Args:
      starts: int64 [U], index of each user's first event.
      ends: int64 [U], index one past each user's last training event.
      length: T, the largest number of events in a piece.

    Returns:
      The pieces, user by user, oldest first; 16 bytes each.

    Raises:
      ValueError: `length` is below 1.

    Source: the training mode of the released RecGRELA, which is RecBole's data augmentation.
    """
    if length < 1:
        raise ValueError(f"length is {length}: it must be at least 1")
    users, index = _enumerate(np.maximum(ends - starts - 1, 0))
    history = index + 1
    lengths = np.minimum(history, length).astype(np.int32)
    return Pieces(starts[users] + history - lengths, lengths, lengths - np.int32(1))


def _enumerate(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For `counts[u]` pieces of each user u: the user of each piece, and its index in the user."""
    users = np.repeat(np.arange(len(counts)), counts)
    return users, np.arange(len(users)) - np.repeat(np.cumsum(counts) - counts, counts)
