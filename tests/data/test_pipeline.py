"""Training batches, decoded slot by slot and held against a loop over training events."""

import collections
import dataclasses

import grain
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linseqrec.data.dataset import Dataset
from linseqrec.data.pipeline import training_batches
from linseqrec.data.splits import Split, Targets, leave_one_out
from tests.real_logs import real_log

ORIGIN = 5_000_000_000  # beyond int32: timestamps must be subtracted before they are cast
PLANS = ("packed", "windows", "prefixes")
# The options of all ways to make rows.
WAYS = [
    *({"plan": plan} for plan in PLANS),
    {"plan": "packed", "phase": "random"},
    {"plan": "packed", "phase": "random", "stride": 4},
    {"plan": "windows", "phase": "random"},
]
ways = pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(map(str, way.values())))


def make(counts, held_out=2):
    """Users of `counts` events; event i is item i + 1, so a decoded event names itself."""
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    events = int(offsets[-1])
    gaps = np.random.default_rng(0).integers(0, 500_000, events)
    times = np.concatenate(
        [np.cumsum(gaps[a:b]) for a, b in zip(offsets[:-1], offsets[1:], strict=True)]
    )
    dataset = Dataset.from_arrays(np.arange(1, events + 1), times + ORIGIN, offsets)
    none = Targets(np.zeros(0, np.int64), np.zeros(0, np.int64))
    train_end = np.maximum(offsets[1:] - held_out, offsets[:-1])
    return dataset, Split("test", train_end, none, none, {})


def expected_predictions(dataset, split, length, plan, stride=None):
    """Every (events of the context, target event), from the definitions of the plans."""
    found = []
    for start, end in zip(dataset.offsets[:-1].tolist(), split.train_end.tolist(), strict=True):
        for target in range(start + 1, end):
            last = target
            if plan != "prefixes":
                last = end - 1
                while last - (stride or length) >= target and last - length > start:
                    last -= stride or length
            found.append((tuple(range(max(start, last - length), target)), target))
    return collections.Counter(found)


def decode(dataset, batch):
    """The same from a batch; checks on the way that rows are what `Batch` and `Events` promise."""
    events = batch.events
    found = collections.Counter()
    for row in range(len(events.items)):
        items, segments = events.items[row].tolist(), events.segment_ids[row].tolist()
        filled = sum(segment > 0 for segment in segments)
        # Padding stands at the end, segments are numbered 1, 2, ..., positions count within them.
        assert segments == sorted(segments[:filled]) + [0] * (len(segments) - filled)
        assert set(segments[:filled]) == set(range(1, max(segments) + 1))
        firsts = [
            segments.index(segment) if segment else slot for slot, segment in enumerate(segments)
        ]
        assert events.positions[row].tolist() == [slot - at for slot, at in enumerate(firsts)]
        assert (
            items[filled:]
            == events.timestamps[row].tolist()[filled:]
            == [0] * (len(items) - filled)
        )
        times = dataset.timestamps[np.array(items[:filled], int) - 1] - dataset.timestamps.min()
        assert events.timestamps[row].tolist()[:filled] == times.tolist()
        slots = range(len(items)) if batch.read_at is None else batch.read_at[row].tolist()
        for index, slot in enumerate(slots):
            target, weight = int(batch.targets[row, index]), float(batch.weights[row, index])
            assert (weight, target > 0) in [(0.0, False), (1.0, True)]
            if weight:
                assert slot < filled
                assert batch.read_at is None or slot == filled - 1
                context = tuple(item - 1 for item in items[firsts[slot] : slot + 1])
                found[context, target - 1] += 1
    return found


def an_epoch(dataset, batches, epoch=0):
    found = collections.Counter()
    for step in range(batches.steps_per_epoch):
        found += decode(dataset, batches[epoch * batches.steps_per_epoch + step])
    return found


def same(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        x.dtype == y.dtype and np.array_equal(x, y)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@settings(max_examples=120, deadline=None)
@given(
    counts=st.lists(st.integers(0, 17), min_size=1, max_size=6),
    plan=st.sampled_from(PLANS),
    length=st.integers(1, 8),
    batch_size=st.integers(1, 5),
    seed=st.integers(0, 3),
    data=st.data(),
)
def test_an_epoch_makes_every_prediction_once(counts, plan, length, batch_size, seed, data):
    stride = None if plan == "prefixes" else data.draw(st.integers(1, length))
    dataset, split = make(counts)
    expected = expected_predictions(dataset, split, length, plan, stride)
    options = dict(plan=plan, length=length, batch_size=batch_size, seed=seed, stride=stride)
    if not expected:
        with pytest.raises(ValueError, match="leaves nothing to train on: none of the"):
            training_batches(dataset, split, **options)
        return
    batches = training_batches(dataset, split, **options)
    for epoch in (0, 1):
        assert an_epoch(dataset, batches, epoch) == expected


@settings(max_examples=120, deadline=None)
@given(
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=6),
    plan=st.sampled_from(PLANS[:2]),
    length=st.integers(1, 8),
    batch_size=st.integers(1, 5),
    seed=st.integers(0, 3),
    data=st.data(),
)
def test_random_phases_make_every_prediction_once(counts, plan, length, batch_size, seed, data):
    stride = data.draw(st.one_of(st.none(), st.integers(1, length)))
    dataset, split = make(counts)
    options = dict(plan=plan, length=length, batch_size=batch_size, seed=seed, stride=stride)
    fixed = expected_predictions(dataset, split, length, plan, stride)
    if not fixed:
        return
    batches = training_batches(dataset, split, **options, phase="random")
    context_of = {target: context for context, target in fixed}
    for epoch in (0, 1):
        found = an_epoch(dataset, batches, epoch)
        assert collections.Counter(target for _, target in found.elements()) == dict.fromkeys(
            context_of, 1
        )
        for context, target in found:
            start = int(dataset.offsets[np.searchsorted(dataset.offsets, target, "right") - 1])
            # The events just before the target, all of one user, the more of them the better.
            assert context == tuple(range(context[0], target)) and start <= context[0]
            assert context[0] == start or len(context) > length - (stride or length)
            # Who fits into a row is not cut.
            user = np.searchsorted(dataset.offsets, target, "right") - 1
            if split.train_end[user] - start - 1 <= length:
                assert context == context_of[target]


def test_random_phases_change_what_a_target_sees_and_not_how_many_steps():
    dataset, split = make([40, 40, 9, 5, 23, 61])
    options = dict(length=10, batch_size=3)
    batches = training_batches(dataset, split, **options, seed=0, phase="random")
    other = training_batches(dataset, split, **options, seed=1, phase="random")
    epochs = [an_epoch(dataset, batches, epoch) for epoch in range(6)]
    assert an_epoch(dataset, other) != epochs[0]
    contexts = {}
    for epoch in epochs:
        for context, target in epoch.elements():
            contexts.setdefault(target, set()).add(context)
    long = np.repeat(np.diff(dataset.offsets) - 3 > 10, np.diff(dataset.offsets))
    seen = {target: len(found) for target, found in contexts.items()}
    assert {seen[target] for target in seen if not long[target]} == {1}
    # A user's second event has only the first before it.
    moved = [seen[t] > 1 for t in seen if long[t] and t - 1 not in dataset.offsets]
    assert np.mean(moved) > 0.95
    # Two users of equal length are not cut alike.
    alike = [
        {t - 2 for (t,) in found} == {t - 42 for (t,) in second}
        for found, second in (
            (
                {(t,) for context, t in epoch if len(context) == 1 and t < 40},
                {(t,) for context, t in epoch if len(context) == 1 and 40 <= t < 80},
            )
            for epoch in epochs
        )
    ]
    assert not all(alike)


def test_rows_of_long_users_come_among_the_others():
    dataset, split = make([40] * 20 + [8] * 40)
    batches = training_batches(dataset, split, length=10, batch_size=4, seed=0, phase="random")
    long = [bool((batches.users(step) < 20).any()) for step in range(batches.steps_per_epoch)]
    short = [bool((batches.users(step) >= 20).any()) for step in range(batches.steps_per_epoch)]
    half = len(long) // 2
    assert all(any(part) for kind in (long, short) for part in (kind[:half], kind[half:]))


def test_random_phases_take_as_many_rows_as_their_events_need():
    counts = np.random.default_rng(0).lognormal(4.5, 1.0, 400).astype(int) + 3
    dataset, split = make(counts)
    options = dict(length=100, batch_size=8, seed=0)
    fixed = training_batches(dataset, split, **options)
    batches = training_batches(dataset, split, **options, phase="random")
    assert abs(batches.rows_per_epoch - fixed.rows_per_epoch) < 0.02 * fixed.rows_per_epoch
    assert batches.fill > 0.97
    for epoch in range(3):
        first = epoch * batches.steps_per_epoch
        steps = [batches[first + step].weights for step in range(batches.steps_per_epoch)]
        assert sum((weights > 0).sum() for weights in steps) == np.maximum(counts - 3, 0).sum()
        assert [weights.any(axis=1).all() for weights in steps[:-1]] == [True] * (len(steps) - 1)


@pytest.mark.parametrize("stride", [None, 3])
def test_packed_rows_predict_what_single_windows_do(stride):
    dataset, split = make([3, 40, 9, 1, 0, 2, 17, 5, 4, 4, 6])
    options = dict(length=10, batch_size=4, seed=1, stride=stride)
    packed = training_batches(dataset, split, plan="packed", **options)
    single = training_batches(dataset, split, plan="windows", **options)
    assert packed.rows_per_epoch < single.rows_per_epoch
    assert packed.fill > single.fill
    assert an_epoch(dataset, packed) == an_epoch(dataset, single)


@ways
def test_a_request_comes_at_the_time_of_the_next_event(way):
    dataset, split = make([3, 40, 9, 1, 0, 2, 17])
    options = dict(**way, length=7, batch_size=4, seed=0)
    hidden = training_batches(dataset, split, **options)
    known = training_batches(dataset, split, **options, request_times=True)
    for step in range(known.steps_per_epoch):
        events = known[step].events
        # An item is its event's number from 1, and so the index of the event after it.
        times = np.where(events.items > 0, dataset.timestamps[events.items] - dataset.origin, 0)
        np.testing.assert_array_equal(events.request_times, times)
        assert events.request_times.dtype == np.int32
        bare = dataclasses.replace(events, request_times=None)
        assert same(dataclasses.replace(known[step], events=bare), hidden[step])


@ways
def test_held_out_events_are_never_read(way):
    dataset, _ = make([3, 12, 1, 2, 30])
    split = leave_one_out(dataset)
    batches = training_batches(dataset, split, **way, length=7, batch_size=3, seed=0)
    held_out = {*(split.validation.positions + 1), *(split.test.positions + 1)}
    assert len(held_out) == 6
    seen = set()
    for step in range(batches.steps_per_epoch):
        batch = batches[step]
        seen |= {*batch.events.items.flat, *batch.targets.flat}
    # All training events are read but those of the users who have only one: nothing follows it.
    assert seen - {0} == set(range(1, dataset.num_events + 1)) - held_out - {1, 16}


@ways
def test_any_step_alone_is_that_step_in_sequence(way):
    dataset, split = make([9, 30, 4, 12, 7, 7])
    options = dict(**way, length=6, batch_size=4, seed=3)
    batches = training_batches(dataset, split, **options)
    steps = 3 * batches.steps_per_epoch + 1
    iterator = iter(batches)
    in_sequence = [next(iterator) for _ in range(steps)]
    for step in reversed(range(steps)):
        assert same(training_batches(dataset, split, **options)[step], in_sequence[step])
        assert same(batches[step], in_sequence[step])


@ways
def test_epochs_and_seeds_have_their_own_order(way):
    dataset, split = make([9, 30, 4, 12, 7, 7])
    options = dict(**way, length=6, batch_size=100)
    batches = training_batches(dataset, split, **options, seed=0)
    assert batches.steps_per_epoch == 1
    other = training_batches(dataset, split, **options, seed=1)
    orders = [batches[0], batches[1], other[0], other[1]]
    items = {tuple(batch.events.items.flat) for batch in orders}
    assert len(items) == 4


@ways
@pytest.mark.parametrize(
    "read_options", [None, grain.ReadOptions(num_threads=2, prefetch_buffer_size=5)]
)
def test_an_iterator_resumes_where_it_was_saved(way, read_options):
    dataset, split = make([9, 30, 4, 12, 7, 7])
    options = dict(**way, length=6, batch_size=3, seed=3)
    batches = training_batches(dataset, split, **options)
    # Once in the middle of an epoch, once at the end of one.
    for taken in (batches.steps_per_epoch + 1, 2 * batches.steps_per_epoch):
        iterator = iter(batches.to_iter_dataset(read_options))
        for _ in range(taken):
            next(iterator)
        state = iterator.get_state()
        assert state == {"next_index": taken}
        rest = [next(iterator) for _ in range(batches.steps_per_epoch)]
        again = iter(training_batches(dataset, split, **options).to_iter_dataset(read_options))
        next(again)
        again.set_state(state)
        assert all(same(next(again), batch) for batch in rest)


@ways
def test_the_slices_of_the_processes_are_the_global_batch(way):
    dataset, split = make([9, 30, 4, 12, 7, 7, 1])
    options = dict(**way, length=6, batch_size=6, seed=3)
    whole = training_batches(dataset, split, **options)
    parts = [
        training_batches(dataset, split, **options, process_index=index, process_count=3)
        for index in range(3)
    ]
    for step in range(2 * whole.steps_per_epoch):
        slices = [part[step] for part in parts]
        assert {len(part.targets) for part in slices} == {2}
        joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *slices)
        assert same(joined, whole[step])
    assert {part.steps_per_epoch for part in parts} == {whole.steps_per_epoch}


# With random phases the plan "windows" may leave a row empty anywhere.
@pytest.mark.parametrize("way", WAYS[:-1], ids=lambda way: "-".join(map(str, way.values())))
def test_the_last_batch_of_an_epoch_is_filled_with_padding(way):
    dataset, split = make([9, 30, 4])
    batches = training_batches(dataset, split, **way, length=6, batch_size=4, seed=0)
    empty = batches.steps_per_epoch * 4 - batches.rows_per_epoch
    assert 0 < empty < 4
    last = batches[batches.steps_per_epoch - 1]
    assert not any(leaf[-empty:].any() for leaf in jax.tree.leaves(last))
    assert last.events.items[:-empty].any(axis=1).all()


@ways
def test_memory_mapped_events_become_plain_arrays(way, tmp_path):
    dataset, split = make([9, 30, 4])
    mapped = {}
    for name in ("items", "timestamps", "offsets"):
        np.save(tmp_path / name, getattr(dataset, name))
        mapped[name] = np.load(tmp_path / f"{name}.npy", mmap_mode="r")
    from_disk = Dataset(**mapped, num_items=dataset.num_items, card=dataset.card)
    options = dict(**way, length=6, batch_size=4, seed=0, request_times=True)
    batch = training_batches(from_disk, split, **options)[1]
    assert same(batch, training_batches(dataset, split, **options)[1])
    assert {type(leaf) for leaf in jax.tree.leaves(batch)} == {np.ndarray}
    assert batch.weights.dtype == np.float32
    assert {leaf.dtype for leaf in [*vars(batch.events).values(), batch.targets]} == {
        np.dtype(np.int32)
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(length=0), "length must be at least 1, got 0"),
        (dict(stride=9), "stride must be between 1 and length=8, got 9"),
        (dict(plan="prefixes", stride=2), "stride has no meaning for prefixes"),
        (dict(phase="rand"), 'phase must be "fixed" or "random", got \'rand\''),
        (dict(phase="random", stride=9), "stride must be between 1 and length=8, got 9"),
        (dict(plan="prefixes", phase="random"), "a random phase has no meaning for prefixes"),
        (dict(plan="sliding"), 'plan must be "packed", "windows" or .*got \'sliding\''),
        (dict(batch_size=0), "batch_size must be at least 1, got 0"),
        (dict(process_count=3), "batch of 4 rows does not divide over 3 processes"),
        (dict(process_index=2, process_count=2), "process_index must be in .*got 2 of 2"),
        (dict(process_count=0), "process_index must be in .*got 0 of 0"),
        (dict(seed=-1), "seed must be at least 0, got -1"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    dataset, split = make([9, 30, 4])
    with pytest.raises(ValueError, match=message):
        training_batches(dataset, split, **{"length": 8, "batch_size": 4, "seed": 0, **options})


def test_the_split_of_another_data_set_is_refused():
    dataset, _ = make([9, 30, 4])
    with pytest.raises(ValueError, match="split is of 2 users but the data set has 3"):
        training_batches(dataset, make([9, 30])[1], length=8, batch_size=4, seed=0)


def test_steps_count_from_zero_and_slice():
    batches = training_batches(*make([9, 30, 4]), length=8, batch_size=2, seed=0)
    with pytest.raises(IndexError, match="steps count from 0, got -1"):
        batches[-1]
    part = batches[2:5]
    assert len(part) == 3
    assert same(part[1], batches[3])


def test_movielens_1m_has_the_published_number_of_prefixes():
    """RecGRELA's log counts 981,491 training rows; windows pack to over 97 %."""
    log = real_log("ml-1m/ml-1m.txt.gz")
    users, items = np.loadtxt(log, dtype=np.int64).T
    offsets = np.concatenate([[0], np.flatnonzero(np.diff(users)) + 1, [len(users)]])
    dataset = Dataset.from_arrays(items, np.arange(len(items)), offsets, order_only=True)
    split = leave_one_out(dataset)

    def plan(name, length):
        return training_batches(dataset, split, plan=name, length=length, batch_size=8, seed=0)

    assert plan("prefixes", 200).rows_per_epoch == 981_491
    for length in (200, 2_048):
        packed = plan("packed", length)
        steps = range(packed.steps_per_epoch)
        assert sum((packed[step].weights > 0).sum() for step in steps) == 981_491
        assert packed.fill > 0.98
