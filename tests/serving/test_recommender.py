"""Updated states equal the model's output for whole histories; lists equal a sort of all scores."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from linseqrec.config import EvaluationConfig, Experiment, TrainingConfig
from linseqrec.config_json import to_json
from linseqrec.data.source import DataConfig
from linseqrec.evaluation.ranks import NonFiniteScoreError
from linseqrec.events import Events
from linseqrec.files import write_json
from linseqrec.models.gated_deltanet import GatedDeltaNetConfig
from linseqrec.models.hytrec import HyTRecConfig
from linseqrec.models.recgrela import RecGRELAConfig
from linseqrec.models.sasrec import SASRecConfig
from linseqrec.models.sinkrec import SinkRecConfig
from linseqrec.serving.recommender import Recommender
from linseqrec.serving.states import ServingError
from linseqrec.training.loop import train
from linseqrec.training.model import split_model
from linseqrec.training.run import Run

NUM_ITEMS = 40
ORIGIN = 900_000_000


def make_model(config, seed=0, **settings):
    """A model with large weights: at the initial scale of 0.02 an error could be invisible."""
    graphdef, params, rest = split_model(config.build(NUM_ITEMS, rngs=nnx.Rngs(seed), **settings))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda p: p + 0.2 * rng.normal(size=p.shape).astype(p.dtype), params)
    return nnx.merge(graphdef, params, rest)


@pytest.fixture(scope="module")
def model():
    config = GatedDeltaNetConfig(width=8, heads=1, num_layers=1, key_width=8, value_width=8)
    return make_model(config)


@pytest.fixture(scope="module")
def recommender(model):
    return Recommender(model, origin=ORIGIN, chunk_length=512)


def histories(lengths, seed=0, width=None):
    """Random right-padded histories with minutes or days between events."""
    rng = np.random.default_rng(seed)
    slots = np.arange(width or max(lengths))
    real = slots < np.array(lengths)[:, None]
    items = rng.integers(1, NUM_ITEMS + 1, real.shape)
    gaps = rng.choice([60, 200_000], size=real.shape)
    fields = (items, np.cumsum(gaps, axis=1), np.ones_like(items), slots + 0 * items)
    return Events(*((real * field).astype(np.int32) for field in fields))


def cut(events, start, stop):
    """The slots `start:stop` of each row."""
    return Events(*(np.asarray(leaf)[:, start:stop] for leaf in jax.tree.leaves(events)))


def update_slots(recommender, states, events, start, stop):
    """The states after one update for each slot of `start:stop`."""
    for slot in range(start, stop):
        states = recommender.update(states, events.items[:, slot], events.timestamps[:, slot])
    return states


def whole_history_hidden(model, events):
    """The hidden vectors of the last events, from one call that reads all events."""
    graphdef, params, rest = split_model(model)
    encode = jax.jit(lambda params, events: nnx.merge(graphdef, params, rest)(events).hidden)
    last = (events.segment_ids > 0).sum(1) - 1
    return np.asarray(encode(params, events))[np.arange(len(last)), last]


def assert_same(states, others):
    for one, other in zip(jax.tree.leaves(states), jax.tree.leaves(others), strict=True):
        np.testing.assert_array_equal(one, other)


def select_users(states, rows):
    return jax.tree.map(lambda leaf: leaf[np.array(rows)], states)


def test_states_after_10_000_events_equal_the_whole_history(model, recommender):
    """9,700 events in chunks of 512, then 300 updates: hidden vectors agree within 2e-5."""
    events = histories([10_000, 10_000])
    states = recommender.start(cut(events, 0, 9_700))
    states = update_slots(recommender, states, events, 9_700, 10_000)
    np.testing.assert_allclose(states.hidden, whole_history_hidden(model, events), atol=2e-5)
    np.testing.assert_array_equal(states.length, [10_000, 10_000])
    # The size of the states, and so the cost of an update, does not grow.
    after_10_events = recommender.start(cut(events, 0, 10))
    assert [leaf.shape for leaf in jax.tree.leaves(states)] == [
        leaf.shape for leaf in jax.tree.leaves(after_10_events)
    ]


@pytest.mark.parametrize(
    "config",
    [
        HyTRecConfig(
            width=8,
            heads=1,
            branches="long",
            short_events=0,
            num_layers=2,
            ratio="1:1",
            attention_window=6,
        ),
        HyTRecConfig(
            width=8,
            heads=1,
            short_events=5,
            short_layers=1,
            num_layers=1,
            ratio="1:0",
            question="delayed",
            timed_attention=True,  # otherwise the short branch does not read times
        ),
        HyTRecConfig(
            width=8,
            heads=1,
            short_events=5,
            short_layers=1,
            num_layers=1,
            question="present",
            ratio="1:0",
            timed_attention=True,
        ),
        HyTRecConfig(
            width=8,
            heads=1,
            short_events=5,
            short_layers=1,
            num_layers=1,
            question="short",
            ratio="1:0",
            timed_attention=True,
        ),
        SinkRecConfig(
            width=8,
            heads=1,
            key_width=8,
            value_width=8,
            attention_window=6,
            dilations=(1, 3),
            levels=2,
            codes=8,
        ),
        RecGRELAConfig(width=8, heads=1, num_layers=1, positions="absolute"),
    ],
    ids=[
        "hytrec, long branch only",
        "hytrec, delayed question",
        "hytrec, present question",
        "hytrec, question of the short branch",
        "sinkrec",
        "recgrela, absolute positions",
    ],
)
def test_states_of_models_that_read_times_or_positions_equal_the_whole_history(config):
    """In chunks of 8 and by single updates: hidden vectors agree within 3e-5."""
    model = make_model(config)
    recommender = Recommender(model, chunk_length=8)
    events = histories([24, 24])
    expected = whole_history_hidden(model, events)
    after_16 = recommender.start(cut(events, 0, 16))
    states = update_slots(recommender, after_16, events, 16, 24)
    np.testing.assert_allclose(states.hidden, expected, atol=3e-5)
    new_users = recommender.start(Events(*[np.zeros((2, 1), np.int32)] * 4))
    updated = update_slots(recommender, new_users, events, 0, 24)
    np.testing.assert_allclose(updated.hidden, expected, atol=3e-5)
    if not isinstance(config, RecGRELAConfig):
        late = recommender.update(states, [7, 7], [30_000_000, 30_000_000])
        early = recommender.update(states, [7, 7], states.last_timestamp)
        assert np.abs(late.hidden - early.hidden).max(axis=1).min() > 1e-3


def test_an_update_does_not_change_users_without_an_event(recommender):
    states = recommender.start(histories([30, 1, 7, 12], seed=1))
    after = recommender.update(states, [0, 5, 0, 9], [-1, 10**8, 0, 10**8])
    assert_same(select_users(after, [0, 2]), select_users(states, [0, 2]))
    np.testing.assert_array_equal(after.length, [30, 2, 7, 13])
    assert np.abs(after.hidden - states.hidden)[[1, 3]].max(axis=1).min() > 1e-3


def test_other_users_and_padding_do_not_change_a_users_state(model):
    recommender = Recommender(model, chunk_length=8)
    events = histories([30, 1, 7, 12], seed=1, width=50)
    batch = recommender.start(events)
    np.testing.assert_allclose(batch.hidden, whole_history_hidden(model, events), atol=2e-6)
    batch = recommender.update(batch, [3, 0, 5, 8], [10**8] * 4)
    for row, (length, item) in enumerate(zip([30, 1, 7, 12], [3, 0, 5, 8], strict=True)):
        history = cut(jax.tree.map(lambda leaf, row=row: leaf[row : row + 1], events), 0, length)
        single = recommender.update(recommender.start(history), [item], [10**8])
        for one, all_users in zip(jax.tree.leaves(single), jax.tree.leaves(batch), strict=True):
            np.testing.assert_allclose(one[0], all_users[row], atol=2e-6)


def test_a_late_event_gets_the_time_of_the_last_event(recommender):
    states = recommender.start(histories([6], seed=2))
    after = recommender.update(states, [4], [5])
    assert_same(after, recommender.update(states, [4], states.last_timestamp))
    np.testing.assert_array_equal(after.last_timestamp, states.last_timestamp)


def test_recommendations_equal_a_sort_and_ties_put_the_lower_id_first(model):
    """Two items of each vector, so that every score ties."""
    graphdef, params, rest = split_model(model)
    tied_model = nnx.merge(graphdef, params, rest, copy=True)
    table = np.asarray(model.item_table())
    table = np.concatenate([100 * table[:1], np.repeat(table[1:21], 2, axis=0)])
    tied_model.embedding.table[...] = table
    recommender = Recommender(tied_model, item_block=64)
    states = recommender.start(histories([9, 4, 30], seed=3))
    seen = np.array([[1, 2, 3, 0], [40, 40, 0, 39], [0, 0, 0, 0]])
    # One score per pair, repeated, so that the expected scores tie to the bit.
    scores = np.asarray(states.hidden, np.float64) @ table[2::2].T.astype(np.float64)
    scores = np.repeat(scores, 2, axis=1)
    for filter_seen in (None, seen):
        ids, found_scores = recommender.recommend(states, 40, filter_seen)
        for row in range(3):
            removed = set() if filter_seen is None else set(filter_seen[row])
            best = np.argsort(-scores[row], kind="stable") + 1
            best = [item for item in best if item not in removed]
            padding = [0] * (40 - len(best))
            np.testing.assert_array_equal(ids[row], best + padding)
            np.testing.assert_allclose(
                found_scores[row, : len(best)], scores[row, np.array(best) - 1], atol=1e-6
            )
            assert np.isneginf(found_scores[row, len(best) :]).all()
    assert found_scores.dtype == np.float32
    allowed = [33, 7, 21, 33, 0]
    ids, _ = recommender.recommend(states, 4, seen, items=allowed)
    for row in range(3):
        best = np.argsort(-scores[row], kind="stable") + 1
        best = [item for item in best if item in allowed and item not in seen[row]]
        np.testing.assert_array_equal(ids[row], best + [0] * (4 - len(best)))


# Shapes stand in for arrays where saved states are read.
def test_no_user_has_no_states(recommender):
    with pytest.raises(ServingError, match="no rows: give one row per user"):
        recommender.start(jax.tree.map(lambda x: x[:0], histories([3])))


@pytest.mark.usefixtures("without_type_checks")
def test_loaded_states_equal_the_saved_ones(model, recommender, tmp_path):
    states = recommender.start(histories([30, 0, 7], seed=1))
    recommender.save(tmp_path / "users.npz", states)
    assert_same(recommender.load(tmp_path / "users.npz"), states)
    # Another recommender of the same model loads them too.
    assert_same(Recommender(model, chunk_length=4).load(tmp_path / "users.npz"), states)


# Shapes stand in for arrays where saved states are read.
@pytest.mark.usefixtures("without_type_checks")
def test_states_of_another_model_or_checkpoint_are_errors(model, tmp_path):
    path = tmp_path / "users.npz"
    first = Recommender(model, identity={"checkpoint": 20})
    first.save(path, first.start(histories([5, 7])))
    with pytest.raises(
        ServingError, match=r"another model or checkpoint.*\n  checkpoint: 20 in the file, 40 in"
    ):
        Recommender(model, identity={"checkpoint": 40}).load(path)
    graphdef, params, rest = split_model(model)
    changed = nnx.merge(graphdef, jax.tree.map(lambda p: p * 1.0001, params), rest)
    with pytest.raises(
        ServingError, match=r"start\n  parameters: \w+ in the file, \w+ in this model$"
    ):
        Recommender(changed, identity={"checkpoint": 20}).load(path)
    other = Recommender(make_model(RecGRELAConfig(width=16, heads=2, num_layers=1)))
    with pytest.raises(
        ServingError, match="model: GatedDeltaNet in the file, RecGRELA in this model"
    ):
        other.load(path)


def test_damaged_files_of_states_are_errors(recommender, tmp_path):
    path = tmp_path / "users.npz"
    recommender.save(path, recommender.start(histories([5, 7])))
    whole_file = path.read_bytes()
    path.write_bytes(whole_file[:-200])
    with pytest.raises(ServingError, match="or is damaged"):
        recommender.load(path)
    middle = len(whole_file) // 2
    flipped = bytes([whole_file[middle] ^ 1])
    path.write_bytes(whole_file[:middle] + flipped + whole_file[middle + 1 :])
    with pytest.raises(ServingError, match="users.npz"):
        recommender.load(path)


def test_states_are_saved_in_npz_files_only(recommender, tmp_path):
    with pytest.raises(ServingError, match="users.bin: the file name must end in .npz"):
        recommender.save(tmp_path / "users.bin", recommender.start(histories([5])))


@pytest.mark.parametrize(
    "config",
    [
        SASRecConfig(width=8, num_layers=1),
        RecGRELAConfig(width=8, heads=1, num_layers=1, causal=False),
        HyTRecConfig(width=8, heads=1, num_layers=1, ratio="1:0", short_layers=1, time="shuffled"),
    ],
    ids=["sasrec", "recgrela", "hytrec"],
)
def test_a_model_without_a_state_is_an_error(config):
    model = config.build(NUM_ITEMS, rngs=nnx.Rngs(0))
    with pytest.raises(ServingError, match=f"this {type(model).__name__} carries no state"):
        Recommender(model)


def test_seconds_count_from_the_first_event_of_the_data_set(recommender):
    np.testing.assert_array_equal(recommender.seconds([ORIGIN, ORIGIN + 90]), [0, 90])
    # 0 stands for a user without an event.
    np.testing.assert_array_equal(recommender.seconds([0, ORIGIN + 90]), [0, 90])
    for time in (ORIGIN - 1, ORIGIN + 2**31):
        with pytest.raises(ServingError, match=f"time {time} is not from "):
            recommender.seconds([ORIGIN, time])
    with pytest.raises(ServingError, match="times must be integers, got float64"):
        recommender.seconds([1e9])


def test_times_of_the_log_itself_are_refused_where_they_can_be_told(model):
    """Of a log that begins in 2020, seconds since its first event are not seconds since 1970."""
    late, early = Recommender(model, origin=1_600_000_000), Recommender(model)
    history, time = cut(histories([2]), 0, 1), 1_600_000_060
    with pytest.raises(ServingError, match="1600000060 is not from 0 to 1599999999 seconds since"):
        late.update(late.start(history), np.array([1]), np.array([time]))
    converted = late.seconds([time + 10**8])
    assert late.update(late.start(history), np.array([1]), converted).last_timestamp == converted
    states = early.update(early.start(history), np.array([1]), np.array([time]))
    assert states.last_timestamp == time


@pytest.mark.parametrize(
    ("field", "slot", "value", "message"),
    [
        ("items", (1, 0), 41, "row 1: item 41 is not in the catalogue: ids run from 1 to 40"),
        ("items", (1, 0), 0, "row 1: there is padding before an event"),
        ("segment_ids", (0, 3), 2, "row 0: segment_ids are not 1 at events"),
        ("positions", (0, 0), 3, "row 0: positions do not count from 0"),
        ("timestamps", (0, 2), 0, "row 0: timestamps decrease"),
        ("timestamps", (0, 0), -5, "row 0: timestamp -5 is not from 0 to"),
    ],
    ids=[
        "unknown item",
        "padding on the left",
        "two segments",
        "later position",
        "decreasing time",
        "negative time",
    ],
)
def test_histories_of_another_form_are_errors(recommender, field, slot, value, message):
    names = ("items", "timestamps", "segment_ids", "positions")
    leaves = jax.tree.leaves(histories([4, 2]))
    arrays = {name: leaf.copy() for name, leaf in zip(names, leaves, strict=True)}
    arrays[field][slot] = value
    with pytest.raises(ServingError, match=message):
        recommender.start(Events(**arrays))


def test_histories_without_a_slot_are_errors(recommender):
    with pytest.raises(ServingError, match="with at least one slot"):
        recommender.start(cut(histories([4, 2]), 0, 0))


@pytest.mark.parametrize(
    ("items", "times", "message"),
    [
        ([1, -1], [0, 0], "row 1: item -1 is not in the catalogue"),
        ([1, 2], [0, ORIGIN * 3], "row 1: timestamp 2700000000 .*Recommender.seconds"),
        ([1], [0], r"of 2 users, but items have shape \(1,\)"),
        ([1.0, 2.0], [0, 0], "items must be integers, got float64"),
    ],
    ids=["negative item", "time on the log's clock", "other number of users", "float items"],
)
def test_updates_with_invalid_events_are_errors(recommender, items, times, message):
    with pytest.raises(ServingError, match=message):
        recommender.update(recommender.start(histories([4, 2])), items, times)


def test_empty_lists_of_items_are_no_error(recommender):
    states = recommender.start(histories([4, 2]))
    ids, scores = recommender.recommend(states, 3, items=[])
    assert not ids.any() and np.isneginf(scores).all()
    unfiltered = recommender.recommend(states, 3)
    for found, expected in zip(recommender.recommend(states, 3, [[], []]), unfiltered, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_invalid_requests_are_errors(model, recommender):
    states = recommender.start(histories([4, 2]))
    with pytest.raises(ValueError, match="k is 41, but the catalogue has 40 items"):
        recommender.recommend(states, 41)
    with pytest.raises(ServingError, match=r"filter_seen must be \[2, S\]"):
        recommender.recommend(states, 3, [[1]])
    with pytest.raises(ServingError, match="row 0: item 41 is not in the catalogue"):
        recommender.recommend(states, 3, [[41], [1]])
    with pytest.raises(ServingError, match="row 0: item 41 is not in the catalogue"):
        recommender.recommend(states, 3, items=[3, 41])
    with pytest.raises(ServingError, match="users in rows 1 have no event yet"):
        recommender.recommend(recommender.start(histories([4, 0])), 3)
    with pytest.raises(ServingError, match="chunk_length must be at least 1, got 0"):
        Recommender(model, chunk_length=0)


def test_a_history_longer_than_the_learned_positions_is_an_error():
    config = RecGRELAConfig(width=8, heads=1, num_layers=1, positions="learned", max_length=8)
    recommender = Recommender(make_model(config), chunk_length=8)
    states = recommender.start(histories([8, 3]))
    assert recommender.recommend(states, 2)[0].min() > 0
    with pytest.raises(NonFiniteScoreError, match="rows 0,"):
        recommender.recommend(recommender.update(states, [1, 1], [10**8] * 2), 2)


def test_a_row_is_no_wider_than_the_longest_history_that_the_model_reads():
    config = RecGRELAConfig(width=8, heads=1, num_layers=1, positions="learned", max_length=20)
    events, model = histories([20, 3]), make_model(config)
    # As a power of 2, the row would have 32 slots.
    states = Recommender(model, longest_history=20).start(events)
    np.testing.assert_allclose(states.hidden, whole_history_hidden(model, events), atol=2e-5)


def test_a_run_with_learned_positions_is_served_in_rows_that_it_can_read(tmp_path):
    experiment = Experiment(
        model=RecGRELAConfig(width=8, heads=1, num_layers=1, positions="learned", max_length=24),
        data=DataConfig(world="quick", world_users=60, length=24, batch_size=8),
        training=TrainingConfig(num_epochs=0.1),
    )
    train(Run.of(experiment), tmp_path)
    recommender = Recommender.from_workdir(tmp_path)
    # As a power of 2, the row would have 32 slots.
    states = recommender.start(histories([24, 3]))
    assert recommender.recommend(states, 2)[0].min() > 0
    full = "the users in rows 0 have more than 24 events, .*greater model.max_length"
    with pytest.raises(ServingError, match=full):
        recommender.update(states, np.array([1, 1]), np.array([10**8] * 2))
    recommender.update(states, np.array([0, 1]), np.array([10**8] * 2))
    with pytest.raises(ServingError, match=full):
        recommender.start(histories([25, 3]))
    # By its identity, states are of the model, whatever else of the configuration is edited.
    moved = dataclasses.replace(experiment, note="moved", evaluation=EvaluationConfig(batch_size=7))
    write_json(tmp_path / "config.json", to_json(moved))
    assert Recommender.from_workdir(tmp_path).identity == recommender.identity
