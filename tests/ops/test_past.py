"""A row's carried slots: where they stand, and what is left of them after a row."""

import numpy as np

from linseqrec.ops.past import Past, extend, last_slots, no_past
from tests.ops.layouts import LAYOUT

SLOTS = 4


def random_past(lengths, seed=0):
    values = np.random.default_rng(seed).normal(size=(len(lengths), SLOTS, 2)).astype(np.float32)
    for row, length in zip(values, lengths, strict=True):
        row[: SLOTS - length] = 0
    return Past(values, np.array(lengths, np.int32))


def of_history(x, ids, values):
    """The events of each row's segments in order, the past before the first: lists of lists."""
    events = [list(x[ids == i]) for i in dict.fromkeys(ids[ids > 0])]
    return [list(values) + events[0], *events[1:]] if events else [list(values)]


def test_the_past_stands_right_before_the_first_event():
    rows = np.random.default_rng(1).normal(size=(*LAYOUT.shape, 2)).astype(np.float32)
    lengths = [4, 2, 3, 0, 1]
    past = random_past(lengths)
    extended, ids = (np.asarray(a) for a in extend(rows, LAYOUT, past))
    assert extended.shape[1] == ids.shape[1] == SLOTS + LAYOUT.shape[1]
    assert (extended[ids == 0] == 0).all()
    for b, length in enumerate(lengths):
        values = past.values[b, SLOTS - length :]
        expected = of_history(rows[b], LAYOUT[b], values)
        got = of_history(extended[b], ids[b], [])
        got = [part for part in got if part]
        assert len(got) == len([part for part in expected if part])
        for one, other in zip(got, expected, strict=False):
            np.testing.assert_array_equal(one, other)
        assert (np.diff(np.flatnonzero(ids[b] == ids[b][ids[b] > 0][0])) == 1).all()


def test_the_past_after_a_row_is_the_end_of_its_last_segment():
    rows = np.random.default_rng(1).normal(size=(*LAYOUT.shape, 2)).astype(np.float32)
    past = random_past([4, 2, 3, 0, 1])
    after = last_slots(*extend(rows, LAYOUT, past), SLOTS)
    for b in range(len(LAYOUT)):
        values = past.values[b, SLOTS - past.length[b] :]
        expected = of_history(rows[b], LAYOUT[b], values)[-1][-SLOTS:]
        assert after.length[b] == len(expected)
        np.testing.assert_array_equal(after.values[b, SLOTS - len(expected) :], expected)
        assert (np.asarray(after.values[b, : SLOTS - len(expected)]) == 0).all()


def test_no_past_has_no_events():
    rows = np.ones((2, 3, 5), np.float32)
    past = no_past(rows, 0)
    assert past.values.shape == (2, 0, 5)
    extended, ids = extend(rows, np.ones((2, 3), np.int32), past)
    np.testing.assert_array_equal(extended, rows)
    assert last_slots(extended, ids, 0).values.shape == (2, 0, 5)
