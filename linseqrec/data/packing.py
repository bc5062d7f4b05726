"""Packing: which pieces share a row.

A row is a sequence of places, and each place holds one piece. `pack` chooses the lengths of the
places once, by best fit decreasing on the histogram of piece lengths. Its cost grows with the
number of distinct lengths, not with the number of users.

An epoch shuffles the rows, and shuffles pieces of equal length among their places. The number of
rows is thus the same in every epoch, and a step number alone tells its epoch.
"""

import dataclasses

import numpy as np

# `pack` makes at most 16 groups of pieces, each large enough for about 32 rows.
_ROWS_PER_GROUP = 32
_MAX_GROUPS = 16


@dataclasses.dataclass(frozen=True)
class Epoch:
    """The shuffle of one epoch.

    Attributes:
      rows: int64 [R], the rows in their order in the epoch.
      pieces: int64 [P], the piece in each place. None: place i holds piece i.
    """

    rows: np.ndarray
    pieces: np.ndarray | None


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

    def shuffled(self, seed: int, epoch: int) -> Epoch:
        """The shuffle of one epoch; it depends on `seed` and `epoch` alone."""
        generator = np.random.default_rng((seed, epoch))
        rows = generator.permutation(len(self))
        if self.ranks is None:
            return Epoch(rows, None)
        pieces = generator.permutation(len(self.lengths))
        # The stable sort keeps the random order of pieces of equal length.
        longest_first = pieces[np.argsort(-self.lengths[pieces], kind="stable")]
        return Epoch(rows, longest_first[self.ranks])


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
