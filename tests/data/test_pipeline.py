"""Training batches, decoded slot by slot, against a loop over training events."""

import collections
import dataclasses

import grain
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linseqrec.data.dataset import Dataset
from linseqrec.data.pipeline import TrainingBatches
from linseqrec.data.source import DataConfig
from linseqrec.data.splits import Split, SplitError, Targets, leave_one_out
from tests.real_logs import real_log

ORIGIN = 5_000_000_000  # beyond int32: timestamps must be subtracted before they are cast
PLANS = ("packed", "windows", "prefixes")
# The options of `TrainingBatches` for every way to make rows.
ROW_OPTIONS = [
    *({"plan": plan} for plan in PLANS),
    {"plan": "packed", "phase": "random"},
    {"plan": "packed", "phase": "random", "stride": 4},
    {"plan": "windows", "phase": "random"},
]


def batches_of(dataset, split, *, seed=0, process_index=0, process_count=1, **options):
    processes = {"process_index": process_index, "process_count": process_count}
    return TrainingBatches(dataset, split, DataConfig(**options), seed=seed, **processes)


def option_name(row_options):
    return "-".join(map(str, row_options.values()))


all_row_options = pytest.mark.parametrize("row_options", ROW_OPTIONS, ids=option_name)


def make(counts, held_out=2):
    """A data set and a split for users of `counts` events; event i has item i + 1."""
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
    """The number of each (context events, target event), from the definitions of the plans."""
    predictions = []
    for start, end in zip(dataset.offsets[:-1].tolist(), split.train_end.tolist(), strict=True):
        for target in range(start + 1, end):
            last = target
            if plan != "prefixes":
                last = end - 1
                while last - (stride or length) >= target and last - length > start:
                    last -= stride or length
            predictions.append((tuple(range(max(start, last - length), target)), target))
    return collections.Counter(predictions)


def decode(dataset, batch):
    """The predictions of a batch; also checks its rows against the docs of `Batch` and `Events`."""
    events = batch.events
    predictions = collections.Counter()
    for row in range(len(events.items)):
        items, segments = events.items[row].tolist(), events.segment_ids[row].tolist()
        filled = sum(segment > 0 for segment in segments)
        # Padding is at the end, segments are numbered 1, 2, ..., positions count within a segment.
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
                predictions[context, target - 1] += 1
    return predictions


def epoch_predictions(dataset, batches, epoch=0):
    predictions = collections.Counter()
    for step in range(batches.steps_per_epoch):
        predictions += decode(dataset, batches[epoch * batches.steps_per_epoch + step])
    return predictions


def equal(a, b):
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
        with pytest.raises(SplitError, match="split 'test' leaves nothing to train on: none of"):
            batches_of(dataset, split, **options)
        return
    batches = batches_of(dataset, split, **options)
    for epoch in (0, 1):
        assert epoch_predictions(dataset, batches, epoch) == expected


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
    batches = batches_of(dataset, split, **options, phase="random")
    context_of = {target: context for context, target in fixed}
    for epoch in (0, 1):
        predictions = epoch_predictions(dataset, batches, epoch)
        assert collections.Counter(target for _, target in predictions.elements()) == dict.fromkeys(
            context_of, 1
        )
        for context, target in predictions:
            start = int(dataset.offsets[np.searchsorted(dataset.offsets, target, "right") - 1])
            # The context is the user's events just before the target, and long if it can be.
            assert context == tuple(range(context[0], target)) and start <= context[0]
            assert context[0] == start or len(context) > length - (stride or length)
            # A history that fits into a row is not cut.
            user = np.searchsorted(dataset.offsets, target, "right") - 1
            if split.train_end[user] - start - 1 <= length:
                assert context == context_of[target]


def test_random_phases_change_the_context_of_a_target_between_epochs():
    dataset, split = make([40, 40, 9, 5, 23, 61])
    options = dict(length=10, batch_size=3)
    batches = batches_of(dataset, split, **options, seed=0, phase="random")
    other = batches_of(dataset, split, **options, seed=1, phase="random")
    epochs = [epoch_predictions(dataset, batches, epoch) for epoch in range(6)]
    assert epoch_predictions(dataset, other) != epochs[0]
    contexts = {}
    for epoch in epochs:
        for context, target in epoch.elements():
            contexts.setdefault(target, set()).add(context)
    long = np.repeat(np.diff(dataset.offsets) - 3 > 10, np.diff(dataset.offsets))
    num_contexts = {target: len(of_target) for target, of_target in contexts.items()}
    assert {num_contexts[target] for target in num_contexts if not long[target]} == {1}
    # The context of a user's second event is always his first event.
    changed = [
        num_contexts[target] > 1
        for target in num_contexts
        if long[target] and target - 1 not in dataset.offsets
    ]
    assert np.mean(changed) > 0.95
    # The two users of 40 events are cut at different events in some epoch. A target with one event
    # of context is the first target after a cut.
    cuts_equal = []
    for epoch in epochs:
        first_targets = {target for context, target in epoch if len(context) == 1}
        cuts = {target for target in first_targets if target < 40}
        cuts_of_next_user = {target - 40 for target in first_targets if 40 <= target < 80}
        cuts_equal.append(cuts == cuts_of_next_user)
    assert not all(cuts_equal)


def test_an_epoch_mixes_rows_of_long_and_short_histories():
    dataset, split = make([40] * 20 + [8] * 40)
    batches = batches_of(dataset, split, length=10, batch_size=4, seed=0, phase="random")
    long = [bool((batches.users(step) < 20).any()) for step in range(batches.steps_per_epoch)]
    short = [bool((batches.users(step) >= 20).any()) for step in range(batches.steps_per_epoch)]
    half = len(long) // 2
    for steps in (long, short):
        assert any(steps[:half]) and any(steps[half:])


def test_random_phases_need_as_many_rows_as_fixed_ones():
    counts = np.random.default_rng(0).lognormal(4.5, 1.0, 400).astype(int) + 3
    dataset, split = make(counts)
    options = dict(length=100, batch_size=8, seed=0)
    fixed = batches_of(dataset, split, **options)
    batches = batches_of(dataset, split, **options, phase="random")
    assert abs(batches.rows_per_epoch - fixed.rows_per_epoch) < 0.02 * fixed.rows_per_epoch
    assert batches.fill > 0.97
    for epoch in range(3):
        first = epoch * batches.steps_per_epoch
        steps = [batches[first + step].weights for step in range(batches.steps_per_epoch)]
        assert sum((weights > 0).sum() for weights in steps) == np.maximum(counts - 3, 0).sum()
        assert [weights.any(axis=1).all() for weights in steps[:-1]] == [True] * (len(steps) - 1)


@pytest.mark.parametrize("stride", [None, 3])
def test_packed_rows_make_the_same_predictions_as_single_windows(stride):
    dataset, split = make([3, 40, 9, 1, 0, 2, 17, 5, 4, 4, 6])
    options = dict(length=10, batch_size=4, seed=1, stride=stride)
    packed = batches_of(dataset, split, plan="packed", **options)
    single = batches_of(dataset, split, plan="windows", **options)
    assert packed.rows_per_epoch < single.rows_per_epoch
    assert packed.fill > single.fill
    assert epoch_predictions(dataset, packed) == epoch_predictions(dataset, single)


@all_row_options
def test_a_request_time_is_the_time_of_the_next_event(row_options):
    dataset, split = make([3, 40, 9, 1, 0, 2, 17])
    options = dict(**row_options, length=7, batch_size=4, seed=0)
    hidden = batches_of(dataset, split, **options)
    known = batches_of(dataset, split, **options, request_time="known")
    for step in range(known.steps_per_epoch):
        events = known[step].events
        # Item i is event i - 1, so that the next event has index i.
        times = np.where(events.items > 0, dataset.timestamps[events.items] - dataset.origin, 0)
        np.testing.assert_array_equal(events.request_times, times)
        assert events.request_times.dtype == np.int32
        without_times = dataclasses.replace(events, request_times=None)
        assert equal(dataclasses.replace(known[step], events=without_times), hidden[step])


@all_row_options
def test_held_out_events_are_never_read(row_options):
    dataset, _ = make([3, 12, 1, 2, 30])
    split = leave_one_out(dataset)
    batches = batches_of(dataset, split, **row_options, length=7, batch_size=3, seed=0)
    held_out_items = {*(split.validation.positions + 1), *(split.test.positions + 1)}
    assert len(held_out_items) == 6
    batch_items = set()
    for step in range(batches.steps_per_epoch):
        batch = batches[step]
        batch_items |= {*batch.events.items.flat, *batch.targets.flat}
    # Users with one training event have no target: items 1 and 16 are in no batch.
    all_items = set(range(1, dataset.num_events + 1))
    assert batch_items - {0} == all_items - held_out_items - {1, 16}


@all_row_options
def test_random_access_equals_iteration(row_options):
    dataset, split = make([9, 30, 4, 12, 7, 7])
    options = dict(**row_options, length=6, batch_size=4, seed=3)
    batches = batches_of(dataset, split, **options)
    steps = 3 * batches.steps_per_epoch + 1
    iterator = iter(batches)
    in_sequence = [next(iterator) for _ in range(steps)]
    for step in reversed(range(steps)):
        assert equal(batches_of(dataset, split, **options)[step], in_sequence[step])
        assert equal(batches[step], in_sequence[step])


@all_row_options
def test_epochs_and_seeds_have_their_own_order(row_options):
    dataset, split = make([9, 30, 4, 12, 7, 7])
    options = dict(**row_options, length=6, batch_size=100)
    batches = batches_of(dataset, split, **options, seed=0)
    assert batches.steps_per_epoch == 1
    other = batches_of(dataset, split, **options, seed=1)
    orders = [batches[0], batches[1], other[0], other[1]]
    items = {tuple(batch.events.items.flat) for batch in orders}
    assert len(items) == 4


@all_row_options
@pytest.mark.parametrize(
    "read_options",
    [None, grain.ReadOptions(num_threads=2, prefetch_buffer_size=5)],
    ids=["no threads", "two threads"],
)
def test_an_iterator_resumes_at_its_saved_step(row_options, read_options):
    dataset, split = make([9, 30, 4, 12, 7, 7])
    options = dict(**row_options, length=6, batch_size=3, seed=3)
    batches = batches_of(dataset, split, **options)
    # Save in the middle of an epoch, and at the end of an epoch.
    for saved_step in (batches.steps_per_epoch + 1, 2 * batches.steps_per_epoch):
        iterator = iter(batches.to_iter_dataset(read_options))
        for _ in range(saved_step):
            next(iterator)
        state = iterator.get_state()
        assert state == {"next_index": saved_step}
        next_batches = [next(iterator) for _ in range(batches.steps_per_epoch)]
        resumed = iter(batches_of(dataset, split, **options).to_iter_dataset(read_options))
        next(resumed)
        resumed.set_state(state)
        assert all(equal(next(resumed), batch) for batch in next_batches)


@all_row_options
def test_the_slices_of_the_processes_are_the_global_batch(row_options):
    dataset, split = make([9, 30, 4, 12, 7, 7, 1])
    options = dict(**row_options, length=6, batch_size=6, seed=3)
    whole = batches_of(dataset, split, **options)
    parts = [
        batches_of(dataset, split, **options, process_index=index, process_count=3)
        for index in range(3)
    ]
    for step in range(2 * whole.steps_per_epoch):
        slices = [part[step] for part in parts]
        assert {len(part.targets) for part in slices} == {2}
        joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *slices)
        assert equal(joined, whole[step])
    assert {part.steps_per_epoch for part in parts} == {whole.steps_per_epoch}


@all_row_options
def test_each_process_names_the_users_of_the_global_batch(row_options):
    dataset, split = make([9, 30, 4, 12, 7, 7, 1])
    options = dict(**row_options, length=6, batch_size=6, seed=3)
    whole, part = (
        batches_of(dataset, split, **options, process_index=count - 1, process_count=count)
        for count in (1, 3)
    )
    for step in range(2 * whole.steps_per_epoch):
        items = whole[step].events.items
        events = items[items > 0] - 1
        users = np.unique(np.searchsorted(dataset.offsets, events, side="right") - 1)
        np.testing.assert_array_equal(part.users(step), users)


# The plan "windows" with random phases may have a row of padding anywhere.
@pytest.mark.parametrize("row_options", ROW_OPTIONS[:-1], ids=option_name)
def test_rows_of_padding_fill_the_last_batch_of_an_epoch(row_options):
    dataset, split = make([9, 30, 4])
    batches = batches_of(dataset, split, **row_options, length=6, batch_size=4, seed=0)
    empty = batches.steps_per_epoch * 4 - batches.rows_per_epoch
    assert 0 < empty < 4
    last = batches[batches.steps_per_epoch - 1]
    assert not any(leaf[-empty:].any() for leaf in jax.tree.leaves(last))
    assert last.events.items[:-empty].any(axis=1).all()


@pytest.mark.parametrize("plan", PLANS)
def test_renamed_rows_keep_how_their_events_follow_each_other(plan):
    rng = np.random.default_rng(0)
    offsets = np.arange(0, 601, 15)
    # Users repeat items, and most items of the catalogue are not theirs.
    items = rng.integers(1, 9, 600) + np.repeat(rng.integers(0, 20, 40), 15)
    dataset = Dataset.from_arrays(items, np.arange(600), offsets, 500)
    options = dict(plan=plan, length=20, batch_size=4, seed=0)
    plain = batches_of(dataset, leave_one_out(dataset), **options)
    renamed = batches_of(dataset, leave_one_out(dataset), **options, renamed=0.5)
    changed = []
    for step in range(2 * plain.steps_per_epoch):
        old, new = plain[step], renamed[step]
        for row in range(4):
            before = np.concatenate([old.events.items[row], old.targets[row]])
            after = np.concatenate([new.events.items[row], new.targets[row]])
            pairs = set(zip(before.tolist(), after.tolist(), strict=True))
            assert len(pairs) == len(set(before)) == len(set(after)), "an item has two names"
            assert ((before == 0) == (after == 0)).all() and after.max() <= 500
            if before.any():
                changed.append((before != after).any())
        events = dataclasses.replace(new.events, items=old.events.items)
        assert equal(dataclasses.replace(new, events=events, targets=old.targets), old)
    assert 0.3 < np.mean(changed) < 0.7

    # The next epoch has the same rows in another order, and renames others, otherwise.
    def rows(batches, epoch):
        steps = [batches[epoch * plain.steps_per_epoch + i] for i in range(plain.steps_per_epoch)]
        return {
            (*batch.events.items[row], *batch.targets[row]) for batch in steps for row in range(4)
        }

    assert rows(renamed, 0) & rows(renamed, 1) <= rows(plain, 0) == rows(plain, 1)


def test_processes_rename_as_one_does():
    dataset, split = make([9, 30, 4])
    options = dict(length=6, batch_size=4, seed=0, renamed=0.7)
    whole = batches_of(dataset, split, **options)
    halves = [
        batches_of(dataset, split, **options, process_index=index, process_count=2)
        for index in range(2)
    ]
    for step in range(2 * whole.steps_per_epoch):
        joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *(b[step] for b in halves))
        assert equal(joined, whole[step])


@all_row_options
def test_batches_of_memory_mapped_events_are_plain_arrays(row_options, tmp_path):
    dataset, split = make([9, 30, 4])
    mapped = {}
    for name in ("items", "timestamps", "offsets"):
        np.save(tmp_path / name, getattr(dataset, name))
        mapped[name] = np.load(tmp_path / f"{name}.npy", mmap_mode="r")
    from_disk = Dataset(**mapped, num_items=dataset.num_items, card=dataset.card)
    options = dict(**row_options, length=6, batch_size=4, seed=0, request_time="known")
    batch = batches_of(from_disk, split, **options)[1]
    assert equal(batch, batches_of(dataset, split, **options)[1])
    assert {type(leaf) for leaf in jax.tree.leaves(batch)} == {np.ndarray}
    assert batch.weights.dtype == np.float32
    assert {leaf.dtype for leaf in [*vars(batch.events).values(), batch.targets]} == {
        np.dtype(np.int32)
    }


# The wrong arguments, and the error message.
def test_the_split_of_another_data_set_is_refused():
    dataset, _ = make([9, 30, 4])
    message = "the split has 2 users, but the data set has 3: make the split from this data set"
    with pytest.raises(ValueError, match=message):
        batches_of(dataset, make([9, 30])[1], length=8, batch_size=4, seed=0)


def test_a_negative_step_is_refused_and_a_slice_selects_steps():
    batches = batches_of(*make([9, 30, 4]), length=8, batch_size=2, seed=0)
    with pytest.raises(IndexError, match="step is -1: it must be at least 0"):
        batches[-1]
    part = batches[2:5]
    assert len(part) == 3
    assert equal(part[1], batches[3])


def test_movielens_1m_has_the_published_number_of_prefixes():
    """The training log of the released RecGRELA counts 981,491 rows; packing fills over 98 %."""
    log = real_log("ml-1m/ml-1m.txt.gz")
    users, items = np.loadtxt(log, dtype=np.int64).T
    offsets = np.concatenate([[0], np.flatnonzero(np.diff(users)) + 1, [len(users)]])
    dataset = Dataset.from_arrays(items, np.arange(len(items)), offsets, order_only=True)
    split = leave_one_out(dataset)

    def plan(name, length):
        return batches_of(dataset, split, plan=name, length=length, batch_size=8, seed=0)

    assert plan("prefixes", 200).rows_per_epoch == 981_491
    for length in (200, 2_048):
        packed = plan("packed", length)
        steps = range(packed.steps_per_epoch)
        assert sum((packed[step].weights > 0).sum() for step in steps) == 981_491
        assert packed.fill > 0.98
