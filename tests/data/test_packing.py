"""Packing against one piece at a time, and what a shuffle may and may not change."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linseqrec.data.packing import best_fit_decreasing, one_piece_a_row, pack

lengths_and_capacity = st.integers(1, 40).flatmap(
    lambda capacity: st.tuples(
        st.lists(st.integers(1, capacity), max_size=60).map(lambda x: np.array(x, np.int32)),
        st.just(capacity),
    )
)


def contents(rows, epoch):
    """The pieces of each row, in the epoch's order of rows."""
    pieces = epoch.pieces if epoch.pieces is not None else np.arange(len(rows.lengths))
    return [
        pieces[rows.firsts[row] : rows.firsts[row] + rows.counts[row]].tolist()
        for row in epoch.rows
    ]


def one_at_a_time(lengths, capacity):
    """The textbook algorithm, one piece at a time: the room left in each row."""
    rooms = []
    for length in sorted(lengths, reverse=True):
        fitting = [row for row, room in enumerate(rooms) if room >= length]
        if fitting:
            rooms[min(fitting, key=lambda row: rooms[row])] -= length
        else:
            rooms.append(capacity - length)
    return rooms


@settings(max_examples=200, deadline=None)
@given(case=lengths_and_capacity)
def test_groups_of_pieces_go_where_single_pieces_would(case):
    lengths, capacity = case
    lengths = np.sort(lengths)[::-1]
    row_of = best_fit_decreasing(lengths, capacity)
    assert len(row_of) == len(lengths)
    rooms = capacity - np.bincount(row_of, weights=lengths)
    assert sorted(rooms) == sorted(one_at_a_time(lengths.tolist(), capacity))


@pytest.mark.parametrize("pieces", [0, 1, 30, 3_000])
def test_rows_hold_each_piece_once_and_are_not_overfull(pieces):
    lengths = np.random.default_rng(pieces).integers(1, 12, pieces).astype(np.int32)
    rows = pack(lengths, 20)
    for epoch in (0, 1):
        packed = contents(rows, rows.shuffled(0, epoch))
        assert sorted(piece for row in packed for piece in row) == list(range(pieces))
        assert all(0 < lengths[row].sum() <= 20 for row in packed)


def test_no_row_holds_more_short_pieces_than_one_group_was_dealt():
    lengths = np.random.default_rng(0).lognormal(4.5, 1.0, 6_000).astype(np.int32).clip(20, 2_048)
    shortest = int((lengths == 20).sum())
    groups = int(lengths.sum()) // 2_048 // 32
    assert (shortest, groups) == (413, 13)
    rows = pack(lengths, 2_048)
    most = max(int((lengths[row] == 20).sum()) for row in contents(rows, rows.shuffled(0, 0)))
    assert most <= -(-shortest // groups)
    # Packed as one, a single row takes far more of them: this is what dealing prevents.
    together = best_fit_decreasing(np.sort(lengths)[::-1], 2_048)[-shortest:]
    assert np.bincount(together).max() > 2 * -(-shortest // groups)


def test_a_shuffle_is_of_rows_and_of_pieces_of_equal_length():
    lengths = np.random.default_rng(0).choice([2, 3, 5, 8], 300).astype(np.int32)
    rows = pack(lengths, 10)
    epochs = [contents(rows, rows.shuffled(7, epoch)) for epoch in (0, 1)]
    shapes = [sorted(tuple(lengths[row]) for row in packed) for packed in epochs]
    assert shapes[0] == shapes[1]
    partners = [{frozenset(row) for row in packed} for packed in epochs]
    assert len(partners[0] & partners[1]) < 10
    order = [[tuple(lengths[row]) for row in packed] for packed in epochs]
    assert order[0] != order[1]
    assert contents(rows, rows.shuffled(7, 0)) == epochs[0]
    assert contents(rows, rows.shuffled(8, 0)) != epochs[0]


def test_rows_of_one_piece_hold_each_piece_once():
    rows = one_piece_a_row(np.array([3, 1, 2], np.int32))
    for epoch in range(4):
        assert sorted(contents(rows, rows.shuffled(0, epoch))) == [[0], [1], [2]]
    visits = {tuple(rows.shuffled(0, epoch).rows) for epoch in range(30)}
    assert len(visits) == 6


def test_short_histories_fill_rows():
    """Log-normal lengths, as logs have them: over 97 % of the slots hold an event."""
    generator = np.random.default_rng(1)
    lengths = generator.lognormal(4.2, 1.1, 4_000).astype(np.int32) + 1
    for capacity in (200, 2_048):
        cut = np.minimum(lengths, capacity)
        rows = pack(cut, capacity)
        assert cut.sum() / (len(rows) * capacity) > 0.97


def test_a_piece_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="piece of 11 events does not fit into a row of 10 slots"):
        pack(np.array([3, 11], np.int32), 10)
