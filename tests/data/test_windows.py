"""Windows and prefixes against a loop over targets written from the definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linseqrec.data.windows import cut_in_line, cut_windows, every_prefix


def predictions(pieces):
    """(first event of the context, target) of every prediction, in order of the target."""
    return sorted(
        (start, start + slot + 1)
        for start, length, skip in zip(pieces.starts, pieces.lengths, pieces.skips, strict=True)
        for slot in range(skip, length)
    )


def bounds(counts):
    """Users of `counts` (training, held out) events each."""
    starts = np.cumsum([0, *(train + rest for train, rest in counts)])[:-1].astype(np.int64)
    return starts, starts + np.array([train for train, _ in counts], np.int64)


users = st.lists(st.tuples(st.integers(0, 23), st.integers(0, 2)), min_size=1, max_size=5)


@settings(max_examples=200, deadline=None)
@given(counts=users, length=st.integers(1, 9), data=st.data())
def test_windows_predict_every_event_once_from_the_context_that_is_defined(counts, length, data):
    stride = data.draw(st.one_of(st.none(), st.integers(1, length)))
    starts, ends = bounds(counts)
    expected = []
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        for target in range(start + 1, end):
            # The oldest window that reaches the target: windows end `stride` apart, counted back
            # from the last training event, until one reaches the user's first event.
            last = end - 1
            while last - (stride or length) >= target and last - length > start:
                last -= stride or length
            expected.append((max(start, last - length), target))
    pieces = cut_windows(starts, ends, length, stride)
    assert sorted(expected) == predictions(pieces)
    assert pieces.lengths.max(initial=0) <= length
    assert pieces.starts.dtype == np.int64
    assert pieces.lengths.dtype == pieces.skips.dtype == np.int32


def test_windows_are_aligned_to_the_end():
    pieces = cut_windows(np.array([10]), np.array([21]), length=4)
    assert pieces.starts.tolist() == [16, 12, 10]
    assert pieces.lengths.tolist() == [4, 4, 2]
    assert pieces.skips.tolist() == [0, 0, 0]


def test_a_stride_gives_every_prediction_a_longer_context():
    pieces = cut_windows(np.array([10]), np.array([21]), length=6, stride=2)
    assert pieces.starts.tolist() == [14, 12, 10]
    assert pieces.lengths.tolist() == [6, 6, 6]
    assert pieces.skips.tolist() == [4, 4, 0]


long_users = st.integers(1, 9).flatmap(
    lambda length: st.tuples(
        st.just(length),
        st.integers(1, length),
        st.lists(
            st.tuples(st.integers(length + 2, 4 * length + 3), st.integers(0, 2)),
            min_size=1,
            max_size=5,
        ),
    )
)


@settings(max_examples=300, deadline=None)
@given(case=long_users, seed=st.integers(0, 9))
def test_a_line_predicts_every_event_once_in_rows_that_are_full(case, seed):
    length, stride, counts = case
    starts, ends = bounds(counts)
    pieces, held = cut_in_line(starts, ends, length, stride, np.random.default_rng(seed))
    found = predictions(pieces)
    expected = [
        (start, target)
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
        for target in range(start + 1, end)
    ]
    assert sorted(target for _, target in found) == [target for _, target in expected]
    first_event = {target: start for start, target in expected}
    for begin, target in found:
        # Within the user; and with more than `length - stride` events of context, if he has them.
        assert first_event[target] <= begin < target
        assert begin == first_event[target] or target - begin > length - stride
    # Rows: none is overfull, and each but the last makes `stride` predictions.
    row_of = np.repeat(np.arange(len(held)), held)
    assert np.bincount(row_of, pieces.lengths).max() <= length
    made = np.bincount(row_of, pieces.lengths - pieces.skips)
    assert len(made) == len(held) == -(-len(expected) // stride)
    assert (made[:-1] == stride).all()
    assert pieces.starts.dtype == np.int64
    assert pieces.lengths.dtype == pieces.skips.dtype == np.int32


def test_a_user_who_is_alone_is_cut_elsewhere_each_time():
    found = set()
    for draw in range(100):
        pieces, held = cut_in_line(
            np.array([5]), np.array([26]), 6, None, np.random.default_rng(draw)
        )
        found.add(tuple(sorted(pieces.starts)))
        assert len(held) == 4 and 5 in pieces.starts
    assert len(found) > 10


def test_where_a_user_is_cut_is_uniform_and_his_own():
    """Over 1,500 draws each phase of a user is as often as any other, whatever a neighbour's is."""
    counts = np.random.default_rng(1).integers(8, 60, 150)
    ends = np.cumsum(counts)
    starts = ends - counts
    draws, length = 1_500, 6
    phases = np.zeros((draws, 2), int)
    for draw in range(draws):
        generator = np.random.default_rng((7, draw))
        pieces, _ = cut_in_line(starts, ends, length, None, generator)
        for user in range(2):
            # The first user of the circle may be cut once more, where the circle begins.
            inside = (pieces.starts > starts[user]) & (pieces.starts < ends[user])
            phases[draw, user] = (pieces.starts[inside].max() - starts[user]) % length
    pairs = np.bincount(phases[:, 0] * length + phases[:, 1], minlength=length**2)
    for counted in (np.bincount(phases[:, 0]), np.bincount(phases[:, 1]), pairs):
        expected = draws / len(counted)
        assert np.abs(counted - expected).max() < 4 * np.sqrt(expected)


@settings(max_examples=100, deadline=None)
@given(counts=users, length=st.integers(1, 9))
def test_every_prefix_is_one_prediction_at_its_last_slot(counts, length):
    starts, ends = bounds(counts)
    pieces = every_prefix(starts, ends, length)
    expected = [
        (max(start, target - length), target)
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
        for target in range(start + 1, end)
    ]
    assert predictions(pieces) == sorted(expected)
    assert len(pieces) == len(expected)


def test_out_of_range_is_refused():
    one = np.array([0]), np.array([5])
    for cut in (cut_windows, every_prefix):
        with pytest.raises(ValueError, match="length must be at least 1, got 0"):
            cut(*one, 0)
    for stride in (0, 5):
        with pytest.raises(ValueError, match=f"between 1 and length=4, got {stride}"):
            cut_windows(*one, 4, stride)
