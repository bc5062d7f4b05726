"""Packing against the textbook algorithm, and the order of rows and pieces in an epoch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linseqrec.data.rows import best_fit_decreasing, one_piece_a_row, pack

lengths_and_capacity = st.integers(1, 40).flatmap(
    lambda capacity: st.tuples(
        st.lists(st.integers(1, capacity), max_size=60).map(lambda x: np.array(x, np.int32)),
        st.just(capacity),
    )
)


def contents(rows, epoch):
    """The pieces of each row, in the order of the rows in the epoch."""
    order, pieces = epoch
    pieces = pieces if pieces is not None else np.arange(len(rows.lengths))
    return [
        pieces[rows.firsts[row] : rows.firsts[row] + rows.counts[row]].tolist() for row in order
    ]


def best_fit_one_at_a_time(lengths, capacity):
    """The free slots of each row after best fit decreasing, placing one piece at a time."""
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
def test_best_fit_fills_rows_like_the_textbook_algorithm(case):
    lengths, capacity = case
    lengths = np.sort(lengths)[::-1]
    row_of = best_fit_decreasing(lengths, capacity)
    assert len(row_of) == len(lengths)
    rooms = capacity - np.bincount(row_of, weights=lengths)
    assert sorted(rooms) == sorted(best_fit_one_at_a_time(lengths.tolist(), capacity))


@pytest.mark.parametrize("pieces", [0, 1, 30, 3_000])
def test_rows_hold_each_piece_once_and_fit_the_capacity(pieces):
    lengths = np.random.default_rng(pieces).integers(1, 12, pieces).astype(np.int32)
    rows = pack(lengths, 20)
    for epoch in (0, 1):
        packed = contents(rows, rows.shuffled(0, epoch))
        assert sorted(piece for row in packed for piece in row) == list(range(pieces))
        assert all(0 < lengths[row].sum() <= 20 for row in packed)


def test_groups_spread_the_short_pieces_over_rows():
    lengths = np.random.default_rng(0).lognormal(4.5, 1.0, 6_000).astype(np.int32).clip(20, 2_048)
    num_shortest = int((lengths == 20).sum())
    groups = int(lengths.sum()) // 2_048 // 32
    assert (num_shortest, groups) == (413, 13)
    shortest_per_group = -(-num_shortest // groups)
    rows = pack(lengths, 2_048)
    shortest_in_row = [
        int((lengths[row] == 20).sum()) for row in contents(rows, rows.shuffled(0, 0))
    ]
    assert max(shortest_in_row) <= shortest_per_group
    # Without groups, one row takes far more of the shortest pieces.
    row_of = best_fit_decreasing(np.sort(lengths)[::-1], 2_048)[-num_shortest:]
    assert np.bincount(row_of).max() > 2 * shortest_per_group


def test_an_epoch_shuffles_rows_and_pieces_of_equal_length():
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


def test_rows_of_one_piece_hold_each_piece_once_in_every_order():
    rows = one_piece_a_row(np.array([3, 1, 2], np.int32))
    for epoch in range(4):
        assert sorted(contents(rows, rows.shuffled(0, epoch))) == [[0], [1], [2]]
    orders = {tuple(rows.shuffled(0, epoch)[0]) for epoch in range(30)}
    assert len(orders) == 6


def test_packing_fills_97_percent_of_the_slots():
    """Log-normal lengths, as in public logs."""
    generator = np.random.default_rng(1)
    lengths = generator.lognormal(4.2, 1.1, 4_000).astype(np.int32) + 1
    for capacity in (200, 2_048):
        fitting = np.minimum(lengths, capacity)
        rows = pack(fitting, capacity)
        assert fitting.sum() / (len(rows) * capacity) > 0.97


def test_a_piece_longer_than_a_row_is_refused():
    with pytest.raises(
        ValueError, match="piece of 11 events does not fit into a row of 10 slots: cut"
    ):
        pack(np.array([3, 11], np.int32), 10)
