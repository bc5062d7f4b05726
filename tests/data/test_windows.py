"""Windows and prefixes against a loop over targets, written from the definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linseqrec.data.rows import cut_at_random, cut_windows, every_prefix


def predictions(pieces):
    """(first event of the context, target) of every prediction, sorted."""
    return sorted(
        (start, start + slot + 1)
        for start, length, skip in zip(pieces.starts, pieces.lengths, pieces.skips, strict=True)
        for slot in range(skip, length)
    )


def bounds(counts):
    """The `starts` and `ends` of users with `counts` (training, held-out) events each."""
    starts = np.cumsum([0, *(train + rest for train, rest in counts)])[:-1].astype(np.int64)
    return starts, starts + np.array([train for train, _ in counts], np.int64)


users = st.lists(st.tuples(st.integers(0, 23), st.integers(0, 2)), min_size=1, max_size=5)


@settings(max_examples=200, deadline=None)
@given(counts=users, length=st.integers(1, 9), data=st.data())
def test_windows_predict_every_event_once_from_the_defined_context(counts, length, data):
    stride = data.draw(st.one_of(st.none(), st.integers(1, length)))
    starts, ends = bounds(counts)
    expected = []
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        for target in range(start + 1, end):
            # The oldest window that predicts the target. Windows end `stride` apart, counted back
            # from the last training event, until one begins with the user's first event.
            last = end - 1
            while last - (stride or length) >= target and last - length > start:
                last -= stride or length
            expected.append((max(start, last - length), target))
    pieces = cut_windows(starts, ends, length, stride)
    assert sorted(expected) == predictions(pieces)
    assert pieces.lengths.max(initial=0) <= length
    assert pieces.starts.dtype == np.int64
    assert pieces.lengths.dtype == pieces.skips.dtype == np.int32


def test_windows_are_aligned_to_the_last_training_event():
    pieces = cut_windows(np.array([10]), np.array([21]), length=4)
    assert pieces.starts.tolist() == [16, 12, 10]
    assert pieces.lengths.tolist() == [4, 4, 2]
    assert pieces.skips.tolist() == [0, 0, 0]


def test_a_smaller_stride_gives_longer_contexts():
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
def test_random_cuts_predict_every_event_once_in_full_rows(case, seed):
    length, stride, counts = case
    starts, ends = bounds(counts)
    pieces, pieces_in_row = cut_at_random(starts, ends, length, stride, np.random.default_rng(seed))
    found = predictions(pieces)
    expected = [
        (start, target)
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
        for target in range(start + 1, end)
    ]
    assert sorted(target for _, target in found) == [target for _, target in expected]
    first_event = {target: start for start, target in expected}
    for begin, target in found:
        # The context is of the user, and longer than `length - stride` if it can be.
        assert first_event[target] <= begin < target
        assert begin == first_event[target] or target - begin > length - stride
    # Every row fits `length`, and every row but the last makes `stride` predictions.
    row_of = np.repeat(np.arange(len(pieces_in_row)), pieces_in_row)
    assert np.bincount(row_of, pieces.lengths).max() <= length
    predictions_in_row = np.bincount(row_of, pieces.lengths - pieces.skips)
    assert len(predictions_in_row) == len(pieces_in_row) == -(-len(expected) // stride)
    assert (predictions_in_row[:-1] == stride).all()
    assert pieces.starts.dtype == np.int64
    assert pieces.lengths.dtype == pieces.skips.dtype == np.int32


def test_random_cuts_of_a_single_user_differ_between_draws():
    cuts = set()
    for draw in range(100):
        pieces, pieces_in_row = cut_at_random(
            np.array([5]), np.array([26]), 6, None, np.random.default_rng(draw)
        )
        cuts.add(tuple(sorted(pieces.starts)))
        assert len(pieces_in_row) == 4 and 5 in pieces.starts
    assert len(cuts) > 10


def test_random_cuts_are_uniform_and_independent_between_users():
    """Over 1,500 draws, each phase of a user, and each pair of phases, is equally frequent."""
    counts = np.random.default_rng(1).integers(8, 60, 150)
    ends = np.cumsum(counts)
    starts = ends - counts
    draws, length = 1_500, 6
    phases = np.zeros((draws, 2), int)
    for draw in range(draws):
        generator = np.random.default_rng((7, draw))
        pieces, _ = cut_at_random(starts, ends, length, None, generator)
        for user in range(2):
            # The user at the first cut of the circle may be cut once more there.
            inside = (pieces.starts > starts[user]) & (pieces.starts < ends[user])
            phases[draw, user] = (pieces.starts[inside].max() - starts[user]) % length
    pairs = np.bincount(phases[:, 0] * length + phases[:, 1], minlength=length**2)
    for frequencies in (np.bincount(phases[:, 0]), np.bincount(phases[:, 1]), pairs):
        expected = draws / len(frequencies)
        assert np.abs(frequencies - expected).max() < 4 * np.sqrt(expected)


@settings(max_examples=100, deadline=None)
@given(counts=users, length=st.integers(1, 9))
def test_a_prefix_makes_one_prediction_at_its_last_slot(counts, length):
    starts, ends = bounds(counts)
    pieces = every_prefix(starts, ends, length)
    expected = [
        (max(start, target - length), target)
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
        for target in range(start + 1, end)
    ]
    assert predictions(pieces) == sorted(expected)
    assert len(pieces) == len(expected)


def test_a_length_or_stride_out_of_range_is_refused():
    starts, ends = np.array([0]), np.array([5])
    for cut in (cut_windows, every_prefix):
        with pytest.raises(ValueError, match="length is 0: it must be at least 1"):
            cut(starts, ends, 0)
    for stride in (0, 5):
        message = f"stride is {stride}: it must be between 1 and length=4"
        with pytest.raises(ValueError, match=message):
            cut_windows(starts, ends, 4, stride)
