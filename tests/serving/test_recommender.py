"""Carried states against the model's reading of whole histories, and lists against a sort."""

import jax
import numpy as np
import pytest
from flax import nnx

from linseqrec.evaluation.ranks import NonFiniteScoreError
from linseqrec.events import Events
from linseqrec.models.gated_deltanet import GatedDeltaNetConfig
from linseqrec.models.hytrec import HyTRecConfig
from linseqrec.models.recgrela import RecGRELAConfig
from linseqrec.models.sasrec import SASRecConfig
from linseqrec.models.sinkrec import SinkRecConfig
from linseqrec.serving.recommender import Recommender
from linseqrec.serving.states import ServingError
from linseqrec.training.model import split_model

NUM_ITEMS = 40
ORIGIN = 1_000_000_000


def make_model(config, seed=0, **told):
    """A model of weights drawn wide: at the initial scale of 0.02 a mistake could hide."""
    graphdef, params, rest = split_model(config.build(NUM_ITEMS, rngs=nnx.Rngs(seed), **told))
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
    """Random histories, right-padded, days and minutes apart."""
    rng = np.random.default_rng(seed)
    slots = np.arange(width or max(lengths))
    real = slots < np.array(lengths)[:, None]
    items = rng.integers(1, NUM_ITEMS + 1, real.shape)
    gaps = rng.choice([60, 200_000], size=real.shape)
    fields = (items, np.cumsum(gaps, axis=1), np.ones_like(items), slots + 0 * items)
    return Events(*((real * field).astype(np.int32) for field in fields))


def cut(events, start, stop):
    """Slots `start:stop` of rows that are this long."""
    return Events(*(np.asarray(leaf)[:, start:stop] for leaf in jax.tree.leaves(events)))


def follow(recommender, states, events, start, stop):
    for slot in range(start, stop):
        states = recommender.update(states, events.items[:, slot], events.timestamps[:, slot])
    return states


def whole(model, events):
    """The last event's hidden vectors, all events read in one call."""
    graphdef, params, rest = split_model(model)
    encode = jax.jit(lambda params, events: nnx.merge(graphdef, params, rest)(events).hidden)
    last = (events.segment_ids > 0).sum(1) - 1
    return np.asarray(encode(params, events))[np.arange(len(last)), last]


def assert_same(states, others):
    for one, other in zip(jax.tree.leaves(states), jax.tree.leaves(others), strict=True):
        np.testing.assert_array_equal(one, other)


def test_ten_thousand_events_carried_are_ten_thousand_encoded(model, recommender):
    """In chunks of 512 up to event 9,700, one by one from there: within 2e-5."""
    events = histories([10_000, 10_000])
    states = recommender.start(cut(events, 0, 9_700))
    early = recommender.start(cut(events, 0, 10))
    states = follow(recommender, states, events, 9_700, 10_000)
    np.testing.assert_allclose(states.hidden, whole(model, events), atol=2e-5)
    np.testing.assert_array_equal(states.length, [10_000, 10_000])
    # What is carried, and so an update's program, is the same after 10 events.
    shapes = lambda states: [leaf.shape for leaf in jax.tree.leaves(states)]  # noqa: E731
    assert shapes(states) == shapes(early)


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
            timed_attention=True,  # else what is read of the last K events does not know of times
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
    ids=["hytrec's long branch", "hytrec", "hytrec asked by the present"]
    + ["hytrec asked by the short branch", "sinkrec", "recgrela, by positions"],
)
def test_models_that_read_times_or_positions_go_on_counting(config):
    """From no event at all, in chunks of 8, and then one by one: within 3e-5."""
    model = make_model(config)
    served = Recommender(model, chunk_length=8)
    events = histories([24, 24])
    expected = whole(model, events)
    started = follow(served, served.start(cut(events, 0, 16)), events, 16, 24)
    np.testing.assert_allclose(started.hidden, expected, atol=3e-5)
    nobody = served.start(Events(*[np.zeros((2, 1), np.int32)] * 4))
    np.testing.assert_allclose(follow(served, nobody, events, 0, 24).hidden, expected, atol=3e-5)
    if not isinstance(config, RecGRELAConfig):
        late = served.update(started, [7, 7], [30_000_000, 30_000_000])
        soon = served.update(started, [7, 7], started.last_timestamp)
        assert np.abs(late.hidden - soon.hidden).max(axis=1).min() > 1e-3


def test_users_without_an_event_stay_as_they_are(recommender):
    states = recommender.start(histories([30, 1, 7, 12], seed=1))
    after = recommender.update(states, [0, 5, 0, 9], [-1, 10**8, 0, 10**8])
    pick = lambda states, rows: jax.tree.map(lambda leaf: leaf[np.array(rows)], states)  # noqa: E731
    assert_same(pick(after, [0, 2]), pick(states, [0, 2]))
    np.testing.assert_array_equal(after.length, [30, 2, 7, 13])
    assert np.abs(after.hidden - states.hidden)[[1, 3]].max(axis=1).min() > 1e-3


def test_neighbours_and_padding_change_nothing(model):
    recommender = Recommender(model, chunk_length=8)
    events = histories([30, 1, 7, 12], seed=1, width=50)
    together = recommender.start(events)
    np.testing.assert_allclose(together.hidden, whole(model, events), atol=2e-6)
    together = recommender.update(together, [3, 0, 5, 8], [10**8] * 4)
    for row, (length, item) in enumerate(zip([30, 1, 7, 12], [3, 0, 5, 8], strict=True)):
        one = jax.tree.map(lambda leaf, row=row: leaf[row : row + 1], events)
        alone = recommender.update(recommender.start(cut(one, 0, length)), [item], [10**8])
        for mine, theirs in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
            np.testing.assert_allclose(mine[0], theirs[row], atol=2e-6)


def test_an_event_that_comes_late_is_taken_for_one_at_the_last_time(recommender):
    states = recommender.start(histories([6], seed=2))
    after = recommender.update(states, [4], [5])
    assert_same(after, recommender.update(states, [4], states.last_timestamp))
    np.testing.assert_array_equal(after.last_timestamp, states.last_timestamp)


def test_recommendations_are_the_first_of_a_sort(model):
    """Items in pairs of one vector: every score ties; the lower id comes first."""
    graphdef, params, rest = split_model(model)
    twins = nnx.merge(graphdef, params, rest)
    table = np.asarray(model.item_table())
    table = np.concatenate([100 * table[:1], np.repeat(table[1:21], 2, axis=0)])
    twins.embedding.table[...] = table
    recommender = Recommender(twins, item_block=64)
    states = recommender.start(histories([9, 4, 30], seed=3))
    seen = np.array([[1, 2, 3, 0], [40, 40, 0, 39], [0, 0, 0, 0]])
    # A sum for each pair, so that they tie to the bit here too.
    scores = np.asarray(states.hidden, np.float64) @ table[2::2].T.astype(np.float64)
    scores = np.repeat(scores, 2, axis=1)
    for removed in (None, seen):
        ids, found = recommender.recommend(states, 40, removed)
        for row in range(3):
            out = set() if removed is None else set(removed[row])
            best = np.argsort(-scores[row], kind="stable") + 1
            best = [item for item in best if item not in out]
            missing = 40 - len(best)
            np.testing.assert_array_equal(ids[row], best + [0] * missing)
            np.testing.assert_allclose(
                found[row, : len(best)], scores[row, np.array(best) - 1], atol=1e-6
            )
            assert np.isneginf(found[row, len(best) :]).all()
    assert found.dtype == np.float32


def test_states_come_back_from_their_file(model, recommender, tmp_path):
    states = recommender.start(histories([30, 0, 7], seed=1))
    recommender.save(tmp_path / "users.npz", states)
    assert_same(recommender.load(tmp_path / "users.npz"), states)
    # The same model made again is the same model.
    assert_same(Recommender(model, chunk_length=4).load(tmp_path / "users.npz"), states)


def test_states_of_another_model_or_checkpoint_are_refused(model, tmp_path):
    path = tmp_path / "users.npz"
    first = Recommender(model, identity={"checkpoint": 20})
    first.save(path, first.start(histories([5, 7])))
    with pytest.raises(ServingError, match=r"another model or checkpoint.*\n  checkpoint: 20 ther"):
        Recommender(model, identity={"checkpoint": 40}).load(path)
    graphdef, params, rest = split_model(model)
    moved = nnx.merge(graphdef, jax.tree.map(lambda p: p * 1.0001, params), rest)
    with pytest.raises(ServingError, match=r"anew.*\n  parameters: \w+ there, \w+ here$"):
        Recommender(moved, identity={"checkpoint": 20}).load(path)
    wider = Recommender(make_model(RecGRELAConfig(width=16, heads=2, num_layers=1)))
    with pytest.raises(ServingError, match="model: GatedDeltaNet there, RecGRELA here"):
        wider.load(path)

    whole_file = path.read_bytes()
    path.write_bytes(whole_file[:-200])
    with pytest.raises(ServingError, match="or is damaged"):
        first.load(path)
    middle = len(whole_file) // 2
    flipped = bytes([whole_file[middle] ^ 1])
    path.write_bytes(whole_file[:middle] + flipped + whole_file[middle + 1 :])
    with pytest.raises(ServingError, match="users.npz"):
        first.load(path)
    with pytest.raises(ServingError, match="in an .npz file, not in"):
        first.save(tmp_path / "users.bin", first.start(histories([5])))


@pytest.mark.parametrize(
    "config",
    [
        SASRecConfig(width=8, num_layers=1),
        RecGRELAConfig(width=8, heads=1, num_layers=1, causal=False),
        HyTRecConfig(width=8, heads=1, num_layers=1, ratio="1:0", short_layers=1, time="shuffled"),
    ],
    ids=["sasrec", "recgrela", "hytrec"],
)
def test_a_model_without_a_state_is_refused(config):
    model = config.build(NUM_ITEMS, rngs=nnx.Rngs(0))
    with pytest.raises(ServingError, match=f"this {type(model).__name__} carries no state"):
        Recommender(model)


def test_times_count_from_the_first_event_of_the_data(recommender):
    np.testing.assert_array_equal(recommender.seconds([ORIGIN, ORIGIN + 90]), [0, 90])
    for time in (ORIGIN - 1, ORIGIN + 2**31):
        with pytest.raises(ServingError, match=f"time {time} is not within"):
            recommender.seconds([ORIGIN, time])
    with pytest.raises(ServingError, match="times must be integers, not float64"):
        recommender.seconds([1e9])


def test_bad_events_are_refused(model, recommender):
    good = histories([4, 2])
    states = recommender.start(good)

    def changed(**fields):
        arrays = dict(
            zip(
                ("items", "timestamps", "segment_ids", "positions"),
                map(np.copy, jax.tree.leaves(good)),
                strict=True,
            )
        )
        for name, (where, value) in fields.items():
            arrays[name][where] = value
        return Events(**arrays)

    for events, message in [
        (changed(items=((1, 0), 41)), "row 1: item 41 is none of.*ids run from 1 to 40"),
        (changed(items=((1, 0), 0)), "row 1: padding stands before an event"),
        (changed(segment_ids=((0, 3), 2)), "row 0: segment_ids are not 1 at events"),
        (changed(positions=((0, 0), 3)), "row 0: positions do not count from 0"),
        (changed(timestamps=((0, 2), 0)), "row 0: timestamps decrease"),
        (changed(timestamps=((0, 0), -5)), "row 0: timestamp -5 is not in int32 seconds"),
        (cut(good, 0, 0), r"rows of at least one slot"),
    ]:
        with pytest.raises(ServingError, match=message):
            recommender.start(events)
    for items, times, message in [
        ([1, -1], [0, 0], "row 1: item -1 is none"),
        ([1, 2], [0, ORIGIN * 3], "row 1: timestamp 3000000000 .*`seconds` makes them"),
        ([1], [0], r"of 2 users, but there are items \(1,\)"),
        ([1.0, 2.0], [0, 0], "items must be integers, not float64"),
    ]:
        with pytest.raises(ServingError, match=message):
            recommender.update(states, items, times)
    with pytest.raises(ValueError, match="k is 41, but the catalogue has 40 items"):
        recommender.recommend(states, 41)
    with pytest.raises(ServingError, match=r"filter_seen must be \[2, S\]"):
        recommender.recommend(states, 3, [[1]])
    with pytest.raises(ServingError, match="row 0: item 41 is none"):
        recommender.recommend(states, 3, [[41], [1]])
    with pytest.raises(ServingError, match="no event yet of users in rows 1"):
        recommender.recommend(recommender.start(histories([4, 0])), 3)
    with pytest.raises(ServingError, match="chunk_length must be at least 1, got 0"):
        Recommender(model, chunk_length=0)


def test_learned_positions_that_end_are_told_of():
    config = RecGRELAConfig(width=8, heads=1, num_layers=1, positions="learned", max_length=8)
    served = Recommender(make_model(config), chunk_length=8)
    states = served.start(histories([8, 3]))
    assert served.recommend(states, 2)[0].min() > 0
    with pytest.raises(NonFiniteScoreError, match="rows 0"):
        served.recommend(served.update(states, [1, 1], [10**8] * 2), 2)
