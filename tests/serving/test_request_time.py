"""Serving of a model that is told request times: an event waits for the request after it."""

import dataclasses

import jax
import numpy as np
import pytest

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
    follow,
    histories,
    make_model,
    whole,
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
    "hytrec delayed": dataclasses.replace(HYTREC, question="delayed"),
    "recgrela": RecGRELAConfig(width=8, heads=1, num_layers=1, positions="absolute"),
    "sinkrec": SinkRecConfig(
        width=8,
        heads=1,
        key_width=8,
        value_width=8,
        attention_window=6,
        dilations=(1, 3),
        levels=2,
        codes=8,
    ),
}


@pytest.fixture(scope="module")
def model():
    return make_model(PLAIN, request_time=True)


@pytest.fixture(scope="module")
def recommender(model):
    return Recommender(model, request_time=True, chunk_length=8)


def asked(events, now):
    """The events with their request times: the next event's time, and `now` after the last one."""
    lengths = (events.segment_ids > 0).sum(1)
    times = np.roll(events.timestamps, -1, axis=1)
    times[np.arange(len(lengths)), lengths - 1] = now
    return dataclasses.replace(events, request_times=times * (events.segment_ids > 0))


def all_scores(model, events, now):
    """[B, N], of whole histories read in one call."""
    return whole(model, asked(events, now)) @ np.asarray(model.item_table()).T[:, 1:]


def served_scores(recommender, states, now):
    """[B, N], from the states."""
    ids, scores = recommender.recommend(states, NUM_ITEMS, now=now)
    return np.take_along_axis(scores, np.argsort(ids, axis=1), axis=1)


@pytest.mark.parametrize("name", CONFIGS)
def test_scores_from_states_are_those_of_whole_histories(name):
    """From no event, in chunks, one by one, with requests meanwhile: within 1e-4."""
    model = make_model(CONFIGS[name], request_time=True)
    served = Recommender(model, request_time=True, chunk_length=8)
    lengths = np.array([24, 24, 1, 9])
    events = histories(lengths)
    last = events.timestamps.max(axis=1)
    now = last + [0, 5_000_000, 3_600, 90_000]
    expected = all_scores(model, events, now)
    states = served.start(events)
    np.testing.assert_allclose(served_scores(served, states, now), expected, atol=1e-4)
    later = served_scores(served, states, now + 40_000)
    assert np.abs(later - expected).max(axis=1).min() > 1e-2
    # A request leaves the states as they were.
    np.testing.assert_allclose(served_scores(served, states, now), expected, atol=1e-4)

    carried = served.start(cut(events, 0, 5))
    for slot in range(5, 24):
        served.recommend(carried, 1, now=int(last.max()))
        carried = follow(served, carried, events, slot, slot + 1)
    np.testing.assert_allclose(served_scores(served, carried, now), expected, atol=1e-4)
    np.testing.assert_array_equal(carried.length, lengths)
    nobody = jax.tree.map(np.zeros_like, events)
    carried = follow(served, served.start(nobody), events, 0, 24)
    np.testing.assert_allclose(served_scores(served, carried, now), expected, atol=1e-4)


def test_users_without_an_event_stay_as_they_are(recommender):
    states = recommender.start(histories([30, 0, 7, 0], seed=1))
    after = recommender.update(states, [0, 0, 5, 9], [-1, 10**8, 10**8, 10**8])
    pick = lambda states, rows: jax.tree.map(lambda leaf: leaf[np.array(rows)], states)  # noqa: E731
    assert_same(pick(after, [0, 1]), pick(states, [0, 1]))
    np.testing.assert_array_equal(after.length, [30, 0, 8, 1])
    # A first event waits for the request after it: nothing has been read yet.
    assert_same(pick(after.model, [3]), pick(states.model, [3]))
    with pytest.raises(ServingError, match="no event yet of users in rows 1"):
        recommender.recommend(after, 3, now=10**8)


def test_now_is_asked_for_where_it_is_read_and_nowhere_else(model, recommender):
    events = histories([4, 2])
    states = recommender.start(events)
    last = np.asarray(states.last_timestamp)
    with pytest.raises(ServingError, match="data.request_time='known': give now"):
        recommender.recommend(states, 3)
    with pytest.raises(ServingError, match=f"row 1: now is {last[1] - 1}.*at least {last[1]}"):
        recommender.recommend(states, 3, now=[last[0], last[1] - 1])
    with pytest.raises(ServingError, match=f"row 0: now is {2**31}: .*at most {2**31 - 1}"):
        recommender.recommend(states, 3, now=2**31)
    with pytest.raises(ServingError, match=r"one a user, \[2\], not \(3,\)"):
        recommender.recommend(states, 3, now=[2 * 10**8] * 3)
    with pytest.raises(ServingError, match="now must be integers, not float64"):
        recommender.recommend(states, 3, now=2e8)
    recommender.recommend(states, 3, now=last)

    hidden = Recommender(make_model(PLAIN))
    with pytest.raises(ServingError, match="trained with data.request_time='hidden'"):
        hidden.recommend(hidden.start(events), 3, now=10**9)


def test_states_of_the_other_kind_are_refused(model, recommender, tmp_path):
    events = histories([4, 2])
    hidden = Recommender(make_model(PLAIN))
    states = recommender.start(events)
    recommender.save(tmp_path / "known.npz", states)
    assert_same(recommender.load(tmp_path / "known.npz"), states)
    hidden.save(tmp_path / "hidden.npz", hidden.start(events))
    with pytest.raises(ServingError, match="request_time: not known there, known here"):
        recommender.load(tmp_path / "hidden.npz")
    with pytest.raises(ServingError, match="arrays of another shape or type: .*pending"):
        hidden.load(tmp_path / "known.npz")
