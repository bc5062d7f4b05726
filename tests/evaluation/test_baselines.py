"""Baselines against loops over events, and against published ones on MovieLens-1M."""

import gzip
import tracemalloc

import numpy as np
import pytest

from linseqrec.data.dataset import Dataset
from linseqrec.data.splits import global_temporal, leave_one_out
from linseqrec.evaluation.baselines import (
    DecayedMarkov,
    Markov,
    PersonalMarkov,
    PersonalPopularity,
    Popularity,
    RecentPopularity,
    TimedMarkov,
    fit_baselines,
    item_counts,
)
from linseqrec.evaluation.evaluator import Evaluator
from tests.real_logs import real_log

ITEMS = 30


def make_dataset():
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 40, 25)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = (rng.zipf(1.5, offsets[-1]) - 1) % (ITEMS - 3) + 1  # three items never occur
    times = np.concatenate([np.sort(rng.integers(0, 90 * 86_400, n)) for n in lengths])
    return Dataset.from_arrays(items.astype(np.int32), times, offsets, num_items=ITEMS)


def training_sequences(dataset, split):
    return [
        dataset.items[start:end].tolist()
        for start, end in zip(dataset.offsets[:-1], split.train_end, strict=True)
    ]


SPLITS = [leave_one_out, lambda dataset: global_temporal(dataset, 0.6, 0.8, "all")]


@pytest.mark.parametrize("make_split", SPLITS)
def test_popularity_counts_training_events_only(make_split):
    dataset = make_dataset()
    split = make_split(dataset)
    expected = np.zeros(ITEMS + 1)
    for sequence in training_sequences(dataset, split):
        for item in sequence:
            expected[item] += 1
    np.testing.assert_array_equal(item_counts(dataset, split), expected)
    scores = Popularity(dataset, split)(split.test.users, split.test.positions)
    np.testing.assert_array_equal(scores, np.tile(expected, (len(split.test), 1)))


def test_recent_popularity_counts_its_window():
    dataset = make_dataset()
    split = leave_one_out(dataset)
    train = [
        (int(dataset.timestamps[event]), int(dataset.items[event]))
        for start, end in zip(dataset.offsets[:-1], split.train_end, strict=True)
        for event in range(start, end)
    ]
    for share, inside in (
        (0.25, [i for _, i in sorted(train)[int(0.75 * len(train)) :]]),
        (1.0, [i for _, i in train]),
    ):
        baseline = RecentPopularity(dataset, split, share=share)
        expected = np.bincount(inside, minlength=ITEMS + 1)
        np.testing.assert_array_equal(baseline(np.array([0]), np.array([2]))[0], expected)
    for share in (0.0, 1.1):
        with pytest.raises(ValueError, match="share must lie in"):
            RecentPopularity(dataset, split, share=share)


@pytest.mark.parametrize("make_split", SPLITS)
def test_decayed_markov_is_its_formula(make_split):
    dataset = make_dataset()
    split = make_split(dataset)
    follows = np.zeros((ITEMS + 1, ITEMS + 1))
    occurs = np.zeros(ITEMS + 1)
    for sequence in training_sequences(dataset, split):
        for item in sequence:
            occurs[item] += 1
        for before, after in zip(sequence[:-1], sequence[1:], strict=True):
            follows[before, after] += 1
    baseline, plain = DecayedMarkov(dataset, split, last=4, decay=0.6), Markov(dataset, split)
    scores = baseline(split.test.users, split.test.positions)
    counts = plain(split.test.users, split.test.positions)
    pairs = zip(split.test.users, split.test.positions, strict=True)
    for row, (user, position) in enumerate(pairs):
        history = dataset.items[dataset.offsets[user] : position].tolist()[::-1]
        expected = sum(
            0.6**k * follows[item] / max(occurs[item], 1) ** 0.5
            for k, item in enumerate(history[:4])
        )
        np.testing.assert_allclose(scores[row], expected, rtol=1e-13)
        last = max(occurs[history[0]], 1) ** 0.5
        np.testing.assert_allclose(counts[row] * last, follows[history[0]], rtol=1e-13)
    assert len(scores) > 20 and scores.max() > 0
    # Validation events are inputs, so rows do differ from what training alone would give, and no
    # batch changes them.
    one = baseline(split.test.users[3:4], split.test.positions[3:4])
    np.testing.assert_array_equal(one[0], scores[3])
    for bad in ({"last": 0}, {"decay": 0.0}, {"decay": 1.5}):
        with pytest.raises(ValueError, match="last must be positive"):
            DecayedMarkov(dataset, split, **bad)


@pytest.mark.parametrize("max_length", [None, 12])
@pytest.mark.parametrize("make_split", SPLITS)
def test_personal_markov_is_its_formula(make_split, max_length):
    dataset = make_dataset()
    split = make_split(dataset)
    sequences = training_sequences(dataset, split)
    repeats = sum(item in s[:index] for s in sequences for index, item in enumerate(s))
    rate = repeats / sum(map(len, sequences))
    assert 0.3 < rate < 0.9
    baseline = PersonalMarkov(dataset, split, last=2, prior=0.3, max_length=max_length)
    markov = Markov(dataset, split)
    assert baseline.repeat_rate == pytest.approx(rate, rel=1e-12)
    # Every position of three users too: histories of no event, and of fewer than speak.
    first = np.arange(dataset.offsets[1], dataset.offsets[4])
    users = np.concatenate([split.test.users, np.repeat([1, 2, 3], np.diff(dataset.offsets[1:5]))])
    positions = np.concatenate([split.test.positions, first])
    scores = baseline(users, positions)
    recalled = 0
    for row, (user, position) in enumerate(zip(users, positions, strict=True)):
        history = dataset.items[dataset.offsets[user] : position].tolist()[-(max_length or 1000) :]
        own = np.zeros(ITEMS + 1)
        for item in history:
            own[item] += 0.3
        for back in (1, 2):
            for event in range(len(history) - back):
                if history[event] == history[-back]:
                    own[history[event + back]] += 1 / back
                    recalled += 1
        others = markov(users[row : row + 1], positions[row : row + 1])[0]
        expected = rate * own / max(own.sum(), 1e-9) + (1 - rate) * others / max(others.sum(), 1e-9)
        np.testing.assert_allclose(scores[row], expected, rtol=1e-12, atol=1e-15)
    assert recalled > 100
    np.testing.assert_array_equal(baseline(users[3:4], positions[3:4])[0], scores[3])
    for bad in ({"last": 0}, {"prior": 0.0}):
        with pytest.raises(ValueError, match="last and prior must be positive"):
            PersonalMarkov(dataset, split, **bad)
    with pytest.raises(ValueError, match="max_length must be positive, got 0"):
        PersonalMarkov(dataset, split, max_length=0)


@pytest.mark.parametrize("make_split", SPLITS)
def test_personal_popularity_is_its_formula(make_split):
    dataset = make_dataset()
    split = make_split(dataset)
    sequences = training_sequences(dataset, split)
    repeats = sum(item in s[:index] for s in sequences for index, item in enumerate(s))
    num_events = sum(map(len, sequences))
    shares = item_counts(dataset, split) / num_events
    baseline = PersonalPopularity(dataset, split)
    # Every position of two users, too: a history of no event has popularity alone.
    first = np.arange(dataset.offsets[1], dataset.offsets[3])
    users = np.concatenate([split.test.users, np.repeat([1, 2], np.diff(dataset.offsets[1:4]))])
    positions = np.concatenate([split.test.positions, first])
    scores = baseline(users, positions)
    for row, (user, position) in enumerate(zip(users, positions, strict=True)):
        own = np.zeros(ITEMS + 1)
        for event in range(dataset.offsets[user], position):
            own[dataset.items[event]] += 1 / np.sqrt(position - event + 10)
        rate = repeats / num_events
        expected = rate * own / max(own.sum(), 1e-9) + (1 - rate) * shares
        np.testing.assert_allclose(scores[row], expected, rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(baseline(users[3:4], positions[3:4])[0], scores[3])


@pytest.mark.parametrize("repeats", [True, False])
def test_personal_popularity_stands_where_users_repeat_items(repeats):
    items = [1, 2, 3, 1 if repeats else 4, 5, 6]
    dataset = Dataset.from_arrays(items, range(6), [0, 6], num_items=6)
    baselines = fit_baselines(dataset, leave_one_out(dataset))
    assert ("Personal popularity" in baselines) == repeats


def make_timed_dataset():
    """Events at once, seconds, minutes and hours apart."""
    dataset = make_dataset()
    waits = np.random.default_rng(1).choice([0, 1, 59, 60, 5_000, 90_000], dataset.num_events)
    users = np.repeat(np.arange(dataset.num_users), np.diff(dataset.offsets))
    firsts = np.cumsum(waits)[dataset.offsets[:-1]]
    times = 10**9 + np.cumsum(waits) - firsts[users]
    return Dataset.from_arrays(dataset.items, times, dataset.offsets, num_items=ITEMS)


def wait_of(times):
    """Which of the waits a pair of times is."""
    seconds = times[1] - times[0]
    return 0 if seconds == 0 else 1 if seconds < 60 else 2


def test_timed_markov_is_its_formula():
    dataset = make_timed_dataset()
    split = leave_one_out(dataset)
    follows, occurs = np.zeros((3, ITEMS + 1, ITEMS + 1)), item_counts(dataset, split)
    for start, end in zip(dataset.offsets[:-1], split.train_end, strict=True):
        for event in range(start + 1, end):
            wait = wait_of(dataset.timestamps[event - 1 : event + 1])
            follows[wait, dataset.items[event - 1], dataset.items[event]] += 1
    assert (follows.sum((1, 2)) > 50).all()
    users, positions = split.test.users, split.test.positions
    baseline = TimedMarkov(dataset, split)
    scores = baseline(users, positions)
    waits = [wait_of(dataset.timestamps[position - 1 : position + 1]) for position in positions]
    assert set(waits) == {0, 1, 2}
    for row, (position, wait) in enumerate(zip(positions, waits, strict=True)):
        last = dataset.items[position - 1]
        expected = follows[wait, last] + 0.1 * follows[:, last].sum(0)
        scale = max(occurs[last], 1) ** 0.5
        np.testing.assert_allclose(scores[row] * scale, expected, rtol=1e-12)
    np.testing.assert_array_equal(baseline(users[3:4], positions[3:4])[0], scores[3])


def test_timed_personal_markov_is_its_formula():
    dataset = make_timed_dataset()
    split = leave_one_out(dataset)
    users, positions = split.test.users, split.test.positions
    baseline = PersonalMarkov(dataset, split, last=2, prior=0.3, timed=True)
    scores, markov = baseline(users, positions), TimedMarkov(dataset, split)(users, positions)
    for row, (user, position) in enumerate(zip(users, positions, strict=True)):
        history = np.arange(dataset.offsets[user], position)
        own = np.zeros(ITEMS + 1)

        def weight(event, position=position):
            hours = (dataset.timestamps[position] - dataset.timestamps[event]) / 3_600
            if hours < 12:
                return 1
            hours %= 24
            return 1 + 20 * np.exp(-((min(hours, 24 - hours) / 1.5) ** 2))

        for event in history:
            own[dataset.items[event]] += 0.3 * weight(event)
            for back in (1, 2):
                speaks = event - back >= history[0]
                if speaks and dataset.items[event - back] == dataset.items[position - back]:
                    own[dataset.items[event]] += weight(event) / back
        rate, others = baseline.repeat_rate, markov[row] / max(markov[row].sum(), 1e-9)
        expected = rate * own / own.sum() + (1 - rate) * others
        np.testing.assert_allclose(scores[row], expected, rtol=1e-9, atol=1e-15)


def test_a_length_that_holds_every_history_changes_nothing():
    dataset = make_dataset()
    split = leave_one_out(dataset)
    users, positions = split.test.users, split.test.positions
    longest = int((positions - dataset.offsets[users]).max())
    whole, within, shorter = (
        PersonalMarkov(dataset, split, max_length=length)(users, positions)
        for length in (None, longest, longest - 1)
    )
    np.testing.assert_array_equal(within, whole)
    assert ((shorter != whole).any(axis=1) == (positions - dataset.offsets[users] == longest)).all()


def test_where_nobody_repeats_personal_markov_is_markov():
    items = np.concatenate([np.random.default_rng(u).permutation(9)[:6] + 1 for u in range(20)])
    dataset = Dataset.from_arrays(items.astype(np.int32), np.arange(120), np.arange(0, 121, 6), 9)
    split = leave_one_out(dataset)
    users, positions = split.test.users, split.test.positions
    plain = Markov(dataset, split)(users, positions)
    shares = plain / np.maximum(plain.sum(axis=1, keepdims=True), 1e-9)
    np.testing.assert_allclose(PersonalMarkov(dataset, split)(users, positions), shares)


def test_the_memory_of_baselines_does_not_grow_with_users_times_items():
    """Dense scores of 40 users and 400,000 items would take 128 MB."""
    rng, items = np.random.default_rng(0), 400_000
    offsets = np.concatenate([[0], np.cumsum(np.where(np.arange(40) == 7, 20_000, 50))])
    events = rng.integers(1, items + 1, offsets[-1]).astype(np.int32)
    dataset = Dataset.from_arrays(events, np.arange(len(events)), offsets, num_items=items)
    split = leave_one_out(dataset)
    evaluator = Evaluator(
        dataset, split.test, max_length=200, batch_size=40, filter_seen=("none", "all")
    )
    tracemalloc.start()
    baselines = fit_baselines(dataset, split, max_length=200, request_times=True)
    for name, baseline in baselines.items():
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        evaluator.run_scores(baseline)
        assert tracemalloc.get_traced_memory()[1] - before < 20e6, name
    tracemalloc.stop()


# HR@10 and NDCG@10 with seen items filtered, then not filtered. The published table breaks ties in
# time by item id. Our data sets keep the log's order, which gives other last events.
BASELINES = [Popularity, Markov, DecayedMarkov]
PUBLISHED = [
    (0.0353, 0.0174, 0.0164, 0.0086),
    (0.2096, 0.1276, 0.1897, 0.1119),
    (0.2339, 0.1368, 0.1916, 0.1080),
]
OURS = [
    (0.0369, 0.0180, 0.0162, 0.0079),
    (0.2073, 0.1224, 0.1843, 0.1055),
    (0.2490, 0.1434, 0.2015, 0.1116),
]


def ml_1m(order):
    with gzip.open(real_log("ml-1m/ratings.tsv.gz"), "rt") as file:
        users, items, _, times, _ = np.loadtxt(file, dtype=np.int64, skiprows=1).T
    within = items if order == "item" else np.arange(len(items))
    rows = np.lexsort((within, times, users))
    _, counts = np.unique(users, return_counts=True)
    ids = np.unique(items[rows], return_inverse=True)[1] + 1
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return Dataset.from_arrays(ids.astype(np.int32), times[rows], offsets)


@pytest.mark.parametrize(
    ("order", "expected", "tolerance"), [("item", PUBLISHED, 0.002), ("row", OURS, 0.00005)]
)
def test_baselines_on_movielens_1m(order, expected, tolerance):
    dataset = ml_1m(order)
    split = leave_one_out(dataset)
    evaluator = Evaluator(
        dataset, split.test, max_length=200, batch_size=512, filter_seen=("all", "none")
    )
    for baseline, figures in zip(BASELINES, expected, strict=True):
        found = evaluator.run_scores(baseline(dataset, split)).metrics_by_filter
        reached = [
            found[name][metric] for name in ("all", "none") for metric in ("HR@10", "NDCG@10")
        ]
        np.testing.assert_allclose(reached, figures, atol=tolerance, err_msg=baseline.__name__)
