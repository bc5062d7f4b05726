"""The kept slots of a history against lists, and the delay against a loop."""

import numpy as np
import pytest

from linseqrec.ops.recent import after_recent, delayed, last_slots
from tests.models.reference import jit
from tests.ops.layouts import LAYOUT

ROWS, SLOTS = LAYOUT.shape
FILL = np.array([-7.0, -8.0], np.float32)


def random_rows(seed=0):
    return np.random.default_rng(seed).normal(size=(ROWS, SLOTS, 2)).astype(np.float32)


def last_segment(ids):
    """The slots of a row's last segment."""
    real = np.flatnonzero(ids)
    return real[ids[real] == ids[real[-1]]] if len(real) else real


@pytest.mark.parametrize("slots", [0, 1, 5, 30])
def test_what_is_kept_is_the_end_of_each_rows_last_history(slots):
    x = random_rows()
    recent = last_slots(*after_recent(x, LAYOUT, None, slots), slots)
    for row, ids, kept, length in zip(x, LAYOUT, recent.values, recent.length, strict=True):
        end = row[last_segment(ids)][-slots:] if slots else row[:0]
        assert length == len(end)
        np.testing.assert_array_equal(kept[slots - len(end) :], end)
        np.testing.assert_array_equal(kept[: slots - len(end)], 0)


def by_loops(x, ids, events, past):
    """Each segment on its own; `past` are the inputs before the row's first, oldest first."""
    y = np.tile(FILL, (*ids.shape, 1))
    for b in range(ROWS):
        history, current = list(past[b]), None
        for t in np.flatnonzero(ids[b]):
            if current is not None and ids[b, t] != current:
                history = []
            current = ids[b, t]
            history.append(x[b, t])
            if len(history) > events:
                y[b, t] = history[-1 - events]
    return y


@pytest.mark.parametrize("events", [0, 1, 3, 6, 25])
@pytest.mark.parametrize("before", [0, 2, 40])
def test_the_delay_is_each_historys_own_and_goes_on(events, before):
    """The past comes from rows of one history of `before` events."""
    earlier = random_rows(1)[:, :1].repeat(max(before, 1), axis=1)
    earlier = earlier + np.arange(max(before, 1))[:, None]
    whose = np.full(earlier.shape[:2], 3 if before else 0)
    run = jit(lambda x, ids, recent: delayed(x, events, FILL, segment_ids=ids, recent=recent))
    _, recent = run(earlier, whose, None)
    y, after = run(random_rows(), LAYOUT, recent)
    past = earlier[:, :before]
    np.testing.assert_array_equal(y, by_loops(random_rows(), LAYOUT, events, past))
    empty = ~LAYOUT.any(axis=1)
    for kept, given in zip(after.values[empty], recent.values[empty], strict=True):
        np.testing.assert_array_equal(kept, given)
    np.testing.assert_array_equal(after.length[empty], recent.length[empty])


def test_several_arrays_are_delayed_alike_and_0_stands_where_nothing_was():
    x, ids = random_rows(), LAYOUT
    several = {"scalar": x[..., 0], "matrix": np.stack([x, -x], axis=-1), "none": None}
    y, recent = jit(lambda x: delayed(x, 3, segment_ids=ids))(several)
    expected = np.where(by_loops(x, ids, 3, [[]] * ROWS) == FILL, 0, by_loops(x, ids, 3, [[]] * 5))
    np.testing.assert_array_equal(y["scalar"], expected[..., 0])
    np.testing.assert_array_equal(y["matrix"], np.stack([expected, -expected], axis=-1))
    alone = delayed(x, 3, FILL, segment_ids=ids)[1]
    np.testing.assert_array_equal(recent.values["matrix"][..., 0], alone.values)
    np.testing.assert_array_equal(recent.length, alone.length)


def test_a_state_of_another_size_is_refused():
    recent = last_slots(*after_recent(random_rows(), LAYOUT, None, 4), 4)
    with pytest.raises(ValueError, match="3 slots are kept, but the state has 4"):
        delayed(random_rows(), 3, FILL, segment_ids=LAYOUT, recent=recent)
