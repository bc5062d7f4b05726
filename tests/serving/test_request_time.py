"""Serving a model that reads request times: an event is pending until the next event's time."""

import dataclasses

import jax
import numpy as np
import pytest

from linseqrec.models.fuxi_linear import FuXiLinearConfig
from linseqrec.models.gated_deltanet import GatedDeltaNetConfig
from linseqrec.models.hytrec import HyTRecConfig
from linseqrec.models.recgrela import RecGRELAConfig
from linseqrec.models.sinkrec import SinkRecConfig
from linseqrec.serving.recommender import Recommender
from linseqrec.serving.states import ServingError
from tests.serving.test_recommender import (
    NUM_ITEMS,
    assert_same,
    cut,
    histories,
    make_model,
    select_users,
    update_slots,
    whole_history_hidden,
)

PLAIN = GatedDeltaNetConfig(width=8, heads=1, num_layers=1, key_width=8, value_width=8)
HYTREC = HyTRecConfig(
    width=8,
    heads=1,
    short_events=3,
    short_layers=1,
    num_layers=2,
    ratio="1:1",
    attention_window=6,
    timed_attention=True,
)
CONFIGS = {
    "gated deltanet": PLAIN,
    "hytrec": HYTREC,
    "hytrec delayed": dataclasses.replace(HYTREC, num_layers=1, ratio="1:0", question="delayed"),
    "fuxi linear": FuXiLinearConfig(width=8, heads=1, num_layers=1, periods=2),
    "recgrela": RecGRELAConfig(width=8, heads=1, num_layers=1, positions="absolute"),
    "sinkrec": SinkRecConfig(
        width=8,
        heads=1,
        loops=1,
        key_width=8,
        value_width=8,
        attention_window=6,
        dilations=(3,),
        levels=2,
        codes=8,
    ),
}


@pytest.fixture(scope="module")
def recommender():
    return Recommender(make_model(PLAIN, request_time=True), request_time=True, chunk_length=8)


def with_request_times(events, now):
    """The events with request times: the time of the next event, and `now` for the last event."""
    lengths = (events.segment_ids > 0).sum(1)
    times = np.roll(events.timestamps, -1, axis=1)
    times[np.arange(len(lengths)), lengths - 1] = now
    return dataclasses.replace(events, request_times=times * (events.segment_ids > 0))


def whole_history_scores(model, events, now):
    """Scores [B, N] from one call that reads all events."""
    hidden = whole_history_hidden(model, with_request_times(events, now))
    return hidden @ np.asarray(model.item_table()).T[:, 1:]


def state_scores(recommender, states, now):
    """Scores [B, N] from the states."""
    ids, scores = recommender.recommend(states, NUM_ITEMS, now=now)
    return np.take_along_axis(scores, np.argsort(ids, axis=1), axis=1)


@pytest.mark.parametrize("name", CONFIGS)
def test_scores_from_states_equal_those_of_whole_histories(name):
    """In chunks, by single updates, and with requests between updates: scores agree within 1e-4."""
    model = make_model(CONFIGS[name], request_time=True)
    recommender = Recommender(model, request_time=True, chunk_length=8)
    lengths = np.array([24, 24, 1, 9])
    events = histories(lengths)
    last = events.timestamps.max(axis=1)
    now = last + [0, 5_000_000, 3_600, 90_000]
    expected = whole_history_scores(model, events, now)
    states = recommender.start(events)
    np.testing.assert_allclose(state_scores(recommender, states, now), expected, atol=1e-4)
    later = state_scores(recommender, states, now + 40_000)
    assert np.abs(later - expected).max(axis=1).min() > 1e-2
    # The requests have not changed the states.
    np.testing.assert_allclose(state_scores(recommender, states, now), expected, atol=1e-4)

    states = recommender.start(cut(events, 0, 5))
    for slot in range(5, 24):
        recommender.recommend(states, 1, now=int(last.max()))
        states = update_slots(recommender, states, events, slot, slot + 1)
    np.testing.assert_allclose(state_scores(recommender, states, now), expected, atol=1e-4)
    np.testing.assert_array_equal(states.length, lengths)
    new_users = recommender.start(jax.tree.map(np.zeros_like, events))
    states = update_slots(recommender, new_users, events, 0, 24)
    np.testing.assert_allclose(state_scores(recommender, states, now), expected, atol=1e-4)


def test_an_update_does_not_change_users_without_an_event(recommender):
    states = recommender.start(histories([30, 0, 7, 0], seed=1))
    after = recommender.update(states, [0, 0, 5, 9], [-1, 10**8, 10**8, 10**8])
    assert_same(select_users(after, [0, 1]), select_users(states, [0, 1]))
    np.testing.assert_array_equal(after.length, [30, 0, 8, 1])
    # A user's first event is pending, so the model's state does not include it yet.
    assert_same(select_users(after.model, [3]), select_users(states.model, [3]))
    with pytest.raises(ServingError, match="users in rows 1 have no event yet"):
        recommender.recommend(after, 3, now=10**8)


def test_only_models_that_read_request_times_need_now(recommender):
    events = histories([4, 2])
    states = recommender.start(events)
    last = np.asarray(states.last_timestamp)
    with pytest.raises(ServingError, match="data.request_time='known': give now"):
        recommender.recommend(states, 3)
    with pytest.raises(ServingError, match=f"row 1: now is {last[1] - 1}.*at least {last[1]}"):
        recommender.recommend(states, 3, now=[last[0], last[1] - 1])
    with pytest.raises(ServingError, match=f"row 0: now is {2**31}, .*at most {2**31 - 1}"):
        recommender.recommend(states, 3, now=2**31)
    with pytest.raises(ServingError, match=r"one per user \[2\], got shape \(3,\)"):
        recommender.recommend(states, 3, now=[2 * 10**8] * 3)
    with pytest.raises(ServingError, match="now must be integers, got float64"):
        recommender.recommend(states, 3, now=2e8)
    recommender.recommend(states, 3, now=last)

    hidden = Recommender(make_model(PLAIN))
    with pytest.raises(ServingError, match="trained with data.request_time='hidden'"):
        hidden.recommend(hidden.start(events), 3, now=10**9)


# Shapes stand in for arrays where saved states are read.
@pytest.mark.usefixtures("without_type_checks")
def test_states_of_a_model_with_other_request_times_are_errors(recommender, tmp_path):
    events = histories([4, 2])
    hidden = Recommender(make_model(PLAIN))
    states = recommender.start(events)
    recommender.save(tmp_path / "known.npz", states)
    assert_same(recommender.load(tmp_path / "known.npz"), states)
    hidden.save(tmp_path / "hidden.npz", hidden.start(events))
    with pytest.raises(ServingError, match="request_time: none in the file, known in this model"):
        recommender.load(tmp_path / "hidden.npz")
    with pytest.raises(ServingError, match="arrays of another shape or type: .*pending"):
        hidden.load(tmp_path / "known.npz")
