"""Rows of a training batch: the pieces of histories, and which pieces share a row.

Each slot of a piece predicts the next event. Cutting divides histories into pieces of at most one
row. Packing puts several pieces in a row.

A packed row is a sequence of places, and each place holds one piece. `pack` chooses the lengths of
the places once, by best fit decreasing on the histogram of piece lengths. Its cost grows with the
number of distinct lengths, not with the number of users.

An epoch shuffles the rows, and shuffles pieces of equal length among their places. The number of
rows is thus the same in every epoch, and a step number alone tells its epoch.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from linseqrec.data.dataset import Dataset
from linseqrec.events import Events


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
    users, age = enumerate_parts(counts)
    end = inputs[users] - age * stride
    begin = np.maximum(end - length, 0)
    oldest = age == counts[users] - 1
    skips = np.where(oldest, 0, end - stride - begin)
    return Pieces(starts[users] + begin, (end - begin).astype(np.int32), skips.astype(np.int32))


def cut_at_random(
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
    users, index = enumerate_parts(np.maximum(ends - starts - 1, 0))
    history = index + 1
    lengths = np.minimum(history, length).astype(np.int32)
    return Pieces(starts[users] + history - lengths, lengths, lengths - np.int32(1))


def enumerate_parts(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For `counts[i]` parts of each i: the i of each part, and the part's number, from 0, in i."""
    wholes = np.repeat(np.arange(len(counts)), counts)
    return wholes, np.arange(len(wholes)) - np.repeat(np.cumsum(counts) - counts, counts)


# `pack` makes at most 16 groups of pieces, each large enough for about 32 rows.
_ROWS_PER_GROUP = 32
_MAX_GROUPS = 16


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows as runs of consecutive places; an epoch puts one piece in each place.

    Attributes:
      firsts: int64 [R], the first place of each row.
      counts: int64 [R], the number of places in each row, at least 1.
      lengths: int32 [P], the number of inputs of each piece.
      ranks: int64 [P], for each place, the rank of its piece by length; 0 is the longest piece.
        None: place i holds piece i in every epoch.
    """

    firsts: np.ndarray
    counts: np.ndarray
    lengths: np.ndarray
    ranks: np.ndarray | None

    def __len__(self) -> int:
        return len(self.firsts)

    def shuffled(self, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray | None]:
        """The order of rows and pieces in one epoch; it depends on `seed` and `epoch` alone.

        Returns:
          int64 [R], the rows in their order in the epoch; int64 [P], the piece in each place. None:
          place i holds piece i.
        """
        generator = np.random.default_rng((seed, epoch))
        rows = generator.permutation(len(self))
        if self.ranks is None:
            return rows, None
        pieces = generator.permutation(len(self.lengths))
        # The stable sort keeps the random order of pieces of equal length.
        longest_first = pieces[np.argsort(-self.lengths[pieces], kind="stable")]
        return rows, longest_first[self.ranks]


def one_piece_a_row(lengths: np.ndarray) -> Rows:
    """Rows of one piece each.

    Args:
      lengths: int32 [P], the number of inputs of each piece.
    """
    return Rows(np.arange(len(lengths)), np.ones(len(lengths), np.int64), lengths, None)


def pack(lengths: np.ndarray, capacity: int) -> Rows:
    """Rows of at most `capacity` slots that hold all pieces, close to the smallest number of rows.

    `pack` deals the pieces, longest first, to up to 16 groups in turn and packs each group alone.
    Best fit decreasing puts pieces of equal length together. Without groups, the short histories
    of a log would share the same few rows in every epoch.

    Args:
      lengths: int32 [P], the number of inputs of each piece.
      capacity: T, slots in a row.

    Returns:
      The rows.

    Raises:
      ValueError: A piece is longer than a row.

    Source: ours. Packing a histogram: Krell et al., 2021 ("Efficient sequence packing without
    cross-contamination").
    """
    if len(lengths) and lengths.max() > capacity:
        raise ValueError(
            f"a piece of {lengths.max()} events does not fit into a row of {capacity} slots: cut "
            "it, or take longer rows"
        )
    longest_first = np.sort(lengths)[::-1]
    # Each group leaves about one row half empty, so groups of few rows would waste slots.
    full_rows = int(np.sum(lengths, dtype=np.int64)) // capacity
    groups = min(max(full_rows // _ROWS_PER_GROUP, 1), _MAX_GROUPS)
    row_of_rank = np.zeros(len(lengths), np.int64)
    num_rows = 0
    for group in range(groups):
        row_of = best_fit_decreasing(longest_first[group::groups], capacity)
        row_of_rank[group::groups] = num_rows + row_of
        num_rows += int(row_of.max(initial=-1)) + 1
    counts = np.bincount(row_of_rank, minlength=num_rows)
    return Rows(np.cumsum(counts) - counts, counts, lengths, np.argsort(row_of_rank, kind="stable"))


def best_fit_decreasing(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """The row of each piece by the best fit rule: the row with the least room that fits the piece.

    The function places pieces of one length together, into all rows with the same room.

    Args:
      lengths: Integers [P] in 1..capacity, from the longest to the shortest.
      capacity: T, slots in a row.

    Returns:
      int64 [P], the row of each piece; rows are numbered from 0 in the order of their first piece.
    """
    histogram = np.bincount(lengths, minlength=capacity + 1)
    # The room of a row is its number of free slots. Bit r of `rooms` is set if some row has room
    # r > 0, so that bit operations find the smallest sufficient room.
    rows_with_room: dict[int, list[np.ndarray]] = {}
    rooms = 0
    row_of: list[np.ndarray] = []
    num_rows = 0
    for length in np.flatnonzero(histogram)[::-1].tolist():
        remaining = int(histogram[length])
        while remaining:
            sufficient = rooms >> length
            lowest_bit = (sufficient & -sufficient).bit_length() - 1
            room = lowest_bit + length if sufficient else capacity
            # A row that takes one piece of this length is the best fit for the next piece too.
            pieces_per_row = room // length
            rows_needed = -(-remaining // pieces_per_row)
            if sufficient:
                rows = _concatenate(rows_with_room.pop(room))
                rooms ^= 1 << room
            else:
                rows = np.arange(num_rows, num_rows + rows_needed)
                num_rows += rows_needed
            used = rows[:rows_needed]
            placed = min(remaining, pieces_per_row * len(used))
            row_of.append(np.repeat(used, pieces_per_row)[:placed])
            remaining -= placed
            pieces_in_last_row = placed - pieces_per_row * (len(used) - 1)
            for same_room_rows, new_room in (
                (used[:-1], room - pieces_per_row * length),
                (used[-1:], room - pieces_in_last_row * length),
                (rows[rows_needed:], room),
            ):
                if len(same_room_rows) and new_room:
                    rows_with_room.setdefault(new_room, []).append(same_room_rows)
                    rooms |= 1 << new_room
    return _concatenate(row_of) if row_of else np.zeros(0, np.int64)


def _concatenate(parts: list[np.ndarray]) -> np.ndarray:
    """The parts as one array; a single part is not copied."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows of events with their targets. Fields are NumPy or JAX arrays.

    Attributes:
      events: The inputs [B, T], padded on the right.
      targets: Item ids to predict; 0 where there is no target.
      weights: 1 at targets, 0 elsewhere.
      read_at: Slots of the events whose outputs predict the targets. None: every slot, S = T.
    """

    events: Events
    targets: Int[Array, "B S"]
    weights: Float[Array, "B S"]
    read_at: Int[Array, "B S"] | None


def gather_rows(
    dataset: Dataset,
    pieces: Pieces,
    members: np.ndarray,
    counts: np.ndarray,
    length: int,
    *,
    last_only: bool = False,
    request_times: bool = False,
) -> Batch:
    """A batch from its pieces, read from the data set in one vectorised gather.

    Args:
      dataset: The events.
      pieces: All pieces of the plan.
      members: int64 [K], indices of the batch's pieces, row after row.
      counts: int64 [B], number of pieces in each row; a row with 0 pieces is all padding.
      length: T. The pieces of a row must fit into it together.
      last_only: Predict only at the last event of each row, S = 1. Each row must be one piece.
      request_times: Whether the events carry request times. An event's request time is the time
        of the next event, its target.

    Returns:
      The batch. Segments are numbered from 1 in the order of `members`; padding stands at the end.
    """
    lengths = pieces.lengths[members].astype(np.int64)
    ends = np.cumsum(counts)
    events_before = np.concatenate([[0], np.cumsum(lengths)])
    padding = length - (events_before[ends] - events_before[ends - counts])
    # The flat batch is a sequence of runs: in each row the pieces, then one run of padding, which
    # has segment id 0 and may be empty.
    rows, piece_in_row = enumerate_parts(counts)
    run_lengths = np.insert(lengths, ends, padding)
    run_slots = np.cumsum(run_lengths) - run_lengths
    run_events = np.insert(pieces.starts[members], ends, 0)
    run_segments = np.insert(piece_in_row + 1, ends, 0).astype(np.int32)

    slots = np.arange(len(counts) * length)
    segment_ids = np.repeat(run_segments, run_lengths)
    real = segment_ids > 0
    positions = slots - np.repeat(run_slots, run_lengths)
    event_indices = slots + np.repeat(run_events - run_slots, run_lengths)

    def read(values: np.ndarray, indices: np.ndarray) -> np.ndarray:
        # A padding slot's index may lie past the last event. Clipping keeps the read legal; the
        # callers multiply padding by 0.
        return np.take(values, indices, mode="clip")

    def as_rows(values: np.ndarray, dtype: type, width: int = length) -> Any:
        return values.astype(dtype, copy=False).reshape(len(counts), width)

    events = Events(
        items=as_rows(read(dataset.items, event_indices) * real, np.int32),
        timestamps=as_rows(
            (read(dataset.timestamps, event_indices) - dataset.origin) * real, np.int32
        ),
        segment_ids=as_rows(segment_ids, np.int32),
        positions=as_rows(positions * real, np.int32),
        request_times=(
            as_rows((read(dataset.timestamps, event_indices + 1) - dataset.origin) * real, np.int32)
            if request_times
            else None
        ),
    )
    if last_only:
        read_at = np.zeros(len(counts), np.int64)
        read_at[rows] = lengths - 1
        targets = np.zeros(len(counts), np.int32)
        targets[rows] = read(dataset.items, pieces.starts[members] + lengths)
        return Batch(
            events,
            targets=as_rows(targets, np.int32, 1),
            weights=as_rows(counts > 0, np.float32, 1),
            read_at=as_rows(read_at, np.int32, 1),
        )
    skips = np.insert(pieces.skips[members], ends, 0)
    if skips.any():
        real = real & (positions >= np.repeat(skips, run_lengths))
    targets = read(dataset.items, event_indices + 1) * real
    return Batch(
        events,
        targets=as_rows(targets, np.int32),
        weights=as_rows(real, np.float32),
        read_at=None,
    )
