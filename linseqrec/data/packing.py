"""Packing: which pieces share a row.

The shapes of the rows are found once, from the histogram of piece lengths, by best fit decreasing:
its cost grows with the number of distinct lengths, not of users. Because the shapes are the same in
every epoch, so is the number of rows, and a step number says at once which epoch it lies in. An
epoch shuffles the rows, and the pieces of equal length among their places.
"""

import dataclasses

import numpy as np

_ROWS_PER_GROUP = 32
_MOST_GROUPS = 16


@dataclasses.dataclass(frozen=True)
class Epoch:
    """One epoch's shuffle.

    Attributes:
      rows: int64 [R], the rows in the order in which they are visited.
      pieces: int64 [P], the piece in each place; None where place i holds piece i.
    """

    rows: np.ndarray
    pieces: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows as runs of places; an epoch puts one piece in each place.

    Attributes:
      firsts: int64 [R], each row's first place.
      counts: int64 [R], each row's number of places, at least 1.
      lengths: int32 [P], length of each piece.
      ranks: int64 [P], for each place, the rank (0 the longest) of the piece that it holds; None
        where place i holds piece i in every epoch.
    """

    firsts: np.ndarray
    counts: np.ndarray
    lengths: np.ndarray
    ranks: np.ndarray | None

    def __len__(self) -> int:
        return len(self.firsts)

    def shuffled(self, seed: int, epoch: int) -> Epoch:
        """The order of one epoch, a function of `seed` and `epoch` alone."""
        generator = np.random.default_rng((seed, epoch))
        rows = generator.permutation(len(self))
        if self.ranks is None:
            return Epoch(rows, None)
        pieces = generator.permutation(len(self.lengths))
        longest_first = pieces[np.argsort(-self.lengths[pieces], kind="stable")]
        return Epoch(rows, longest_first[self.ranks])


def one_piece_a_row(lengths: np.ndarray) -> Rows:
    """Rows of one piece each."""
    return Rows(np.arange(len(lengths)), np.ones(len(lengths), np.int64), lengths, None)


def pack(lengths: np.ndarray, capacity: int) -> Rows:
    """Rows of up to `capacity` slots that hold all pieces, in close to as few rows as can be.

    The pieces are dealt like cards, longest first, to as many as 16 groups, and each group is
    packed by itself. Packed as one, the short histories of a log would share the same few rows in
    every epoch, because best fit decreasing keeps equal lengths together.

    Args:
      lengths: int32 [P], length of each piece.
      capacity: T, slots in a row.

    Returns:
      The rows.

    Raises:
      ValueError: A piece is longer than a row.

    Source: ours; the idea of packing a histogram is Krell et al., 2021 ("Efficient sequence packing
    without cross-contamination").
    """
    if len(lengths) and lengths.max() > capacity:
        raise ValueError(
            f"a piece of {lengths.max()} events does not fit into a row of {capacity} slots"
        )
    longest_first = np.sort(lengths)[::-1]
    # Each group leaves about one row half empty.
    full_rows = int(np.sum(lengths, dtype=np.int64)) // capacity
    groups = min(max(full_rows // _ROWS_PER_GROUP, 1), _MOST_GROUPS)
    row_of_rank = np.zeros(len(lengths), np.int64)
    num_rows = 0
    for group in range(groups):
        row_of = best_fit_decreasing(longest_first[group::groups], capacity)
        row_of_rank[group::groups] = num_rows + row_of
        num_rows += int(row_of.max(initial=-1)) + 1
    counts = np.bincount(row_of_rank, minlength=num_rows)
    return Rows(np.cumsum(counts) - counts, counts, lengths, np.argsort(row_of_rank, kind="stable"))


def best_fit_decreasing(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """Places pieces, longest first, each into the row with the least room that still takes it.

    Pieces of one length and rows of one room are moved together.

    Args:
      lengths: Integers [P] in 1..capacity, none larger than the one before it.
      capacity: T, slots in a row.

    Returns:
      int64 [P], the row of each piece; rows are numbered from 0 as they are opened.
    """
    histogram = np.bincount(lengths, minlength=capacity + 1)
    # Rows by the room left in them; bit r of `rooms` says that some row has room r > 0.
    rows_with_room: dict[int, list[np.ndarray]] = {}
    rooms = 0
    row_of: list[np.ndarray] = []
    num_rows = 0
    for length in np.flatnonzero(histogram)[::-1].tolist():
        left = int(histogram[length])
        while left:
            enough = rooms >> length
            room = (enough & -enough).bit_length() - 1 + length if enough else capacity
            # A row that took one piece of this length has the least room for the next one too.
            each = room // length
            needed = -(-left // each)
            if enough:
                rows = _merged(rows_with_room.pop(room))
                rooms ^= 1 << room
            else:
                rows = np.arange(num_rows, num_rows + needed)
                num_rows += needed
            taken = rows[:needed]
            placed = min(left, each * len(taken))
            row_of.append(np.repeat(taken, each)[:placed])
            left -= placed
            in_last = placed - each * (len(taken) - 1)
            for changed, room_left in (
                (taken[:-1], room - each * length),
                (taken[-1:], room - in_last * length),
                (rows[needed:], room),
            ):
                if len(changed) and room_left:
                    rows_with_room.setdefault(room_left, []).append(changed)
                    rooms |= 1 << room_left
    return _merged(row_of) if row_of else np.zeros(0, np.int64)


def _merged(parts: list[np.ndarray]) -> np.ndarray:
    """The parts as one array."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
