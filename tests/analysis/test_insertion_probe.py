"""The probe's histories hold what they say, and its summary what the ranks say."""

import dataclasses

import numpy as np
import pytest

from linseqrec.analysis.insertion_probe import (
    ProbeConfig,
    frequent_pattern,
    make_probes,
    summarise,
)
from linseqrec.config_fields import ConfigError
from linseqrec.data.dataset import Dataset

CONFIG = ProbeConfig(insertions=(0, 3, 8), context=6, shown=2, pattern=2, noise=0.3)


@pytest.fixture(scope="module")
def dataset():
    """20 users of 10 events, over 60 items; the last user has 5."""
    rng = np.random.default_rng(0)
    offsets = np.append(np.arange(0, 201, 10), 205)
    times = np.concatenate([1_000 + np.cumsum(rng.integers(1, 99, 205))])
    return Dataset.from_arrays(rng.integers(1, 61, 205).astype(np.int32), times, offsets, 60)


@pytest.fixture(scope="module")
def groups():
    return np.append(-1, np.arange(60) // 6)


@pytest.fixture(scope="module")
def probes(dataset, groups):
    users = np.arange(21)
    ends = dataset.offsets[1:] - 1
    return make_probes(dataset, users, ends, groups, CONFIG, np.random.default_rng(1))


def test_a_history_is_context_with_the_rare_event_and_insertions(probes, dataset):
    assert len(probes.target) == 20  # the last user's history is too short
    for arm in ("repeated", "random"):
        events, slot = probes.events(arm, 3, CONFIG.length)
        assert slot == 6 + 2 + 3 - 1
        # Three own events, the rare one, one or two own, the rare one again, the others.
        own = np.delete(events.items, [3, 5], axis=1)
        np.testing.assert_array_equal(own[4, :6], dataset.items[43:49])
        np.testing.assert_array_equal(events.items[:, [3, 5]], np.stack([probes.target] * 2, 1))
        np.testing.assert_array_equal(own[:, 6:9], probes.inserted[arm][:, :3])
        assert not own[:, 9:].any()
        np.testing.assert_array_equal(events.segment_ids, events.items > 0)
        np.testing.assert_array_equal(events.positions[0], [*range(11), *[0] * 5])
        context = dataset.timestamps[43:49] - dataset.origin
        steps = np.diff(events.timestamps[4, : slot + 1])
        assert events.timestamps[4, 0] == context[0]
        assert (steps == int(np.median(np.diff(context)))).all()
    events, slot = probes.events("random", 3, CONFIG.length, shown=False)
    assert slot == 8
    np.testing.assert_array_equal(events.items[:, :6], probes.context)
    np.testing.assert_array_equal(events.items[:, 6:9], probes.inserted["random"][:, :3])
    assert not (events.items == probes.target[:, None]).any()


@pytest.mark.parametrize(
    ("first", "step", "expected"),
    [
        (1_000, 100_000, (1_000, 100_000)),
        # Fits if it begins earlier. 14 gaps of 32 years and as long a wait for the request do not,
        # but a fifteenth of int32 each.
        (2**31 - 200_000, 100_000, (2**31 - 1 - 15 * 100_000, 100_000)),
        (5, 10**9, (5, (2**31 - 1) // 15)),
    ],
)
def test_times_that_int32_cannot_hold_keep_their_gaps(groups, first, step, expected):
    config = ProbeConfig(insertions=(0, 12), context=2, shown=1, pattern=1)
    # A user of fifty events at once, so that there are items to draw, and the one that is probed.
    times = np.append(np.zeros(50, int), [first, first + step, first + step])
    items = np.append(np.arange(1, 51), [51, 52, 53]).astype(np.int32)
    dataset = Dataset.from_arrays(items, times, np.array([0, 50, 53]), 60)
    rng = np.random.default_rng(0)
    probes = make_probes(dataset, np.array([1]), np.array([52]), groups, config, rng)
    events, slot = probes.events("random", 12, config.length)
    assert slot == config.length - 1 == 14
    assert events.timestamps[0, 0] == expected[0]
    assert set(np.diff(events.timestamps[0].astype(np.int64))) == {expected[1]}
    assert events.request_times is None
    asked, _ = probes.events("random", 12, config.length, request_times=True)
    waits = asked.request_times[0].astype(np.int64) - asked.timestamps[0]
    assert set(waits) == {expected[1]}


def test_the_rare_item_is_new_to_its_history(probes):
    held = np.concatenate([probes.context, *probes.inserted.values()], axis=1)
    assert not (held == probes.target[:, None]).any()


def test_random_events_and_the_rare_item_are_drawn_as_they_are_in_the_log(groups):
    """Half of the log is item 60, which no probed history holds: so are half of the draws."""
    rng = np.random.default_rng(2)
    items = rng.integers(1, 60, (200, 10))
    items[100:] = 60
    dataset = Dataset.from_arrays(
        items.ravel().astype(np.int32), np.arange(2_000), np.arange(0, 2_001, 10), 60
    )
    users, ends = np.arange(100), np.arange(9, 1_009, 10)
    config = ProbeConfig(insertions=(0, 8), context=6, shown=2, pattern=2, noise=0.0)
    probes = make_probes(dataset, users, ends, groups, config, rng)
    assert np.mean(probes.inserted["random"] == 60) == pytest.approx(0.5, abs=0.06)
    config = dataclasses.replace(config, insertions=(0,))
    probes = make_probes(dataset, users, ends, groups, config, rng)
    assert np.mean(probes.target == 60) == pytest.approx(0.53, abs=0.15)


def test_copies_are_of_the_pattern_or_of_its_groups(probes, groups):
    copies = probes.inserted["repeated"]
    same = []
    for context, copy in zip(probes.context, copies, strict=True):
        pattern = np.resize(frequent_pattern(context, groups, 2), 8)
        np.testing.assert_array_equal(groups[copy], groups[pattern])
        same.append(copy == pattern)
    assert 0.6 < np.mean(same) < 0.9  # noise 0.3, of which a sixth draws the very item
    assert np.mean(groups[probes.inserted["random"]] == groups[copies]) < 0.3


def test_the_pattern_that_recurs_is_found():
    groups = np.array([-1, 0, 0, 1, 1, 2])
    recurs = np.array([5, 1, 3, 4, 1, 3, 5])
    np.testing.assert_array_equal(frequent_pattern(recurs, groups, 2), [1, 3])
    # Nothing recurs: the groups decide, then the latest.
    np.testing.assert_array_equal(frequent_pattern(np.array([5, 1, 2, 3]), groups, 2), [1, 2])
    np.testing.assert_array_equal(frequent_pattern(np.array([1, 3, 5]), groups, 1), [5])


def test_what_cannot_be_probed_is_refused(dataset, groups):
    users, ends, rng = np.arange(21), dataset.offsets[1:] - 1, np.random.default_rng(0)
    with pytest.raises(ConfigError, match="no user has the 10 events .* set a smaller --context"):
        make_probes(dataset, users, ends, groups, ProbeConfig(context=10, shown=1), rng)
    with pytest.raises(ConfigError, match="60 items leave none that"):
        config = ProbeConfig(insertions=(0, 2_000), context=6, shown=1)
        make_probes(dataset, users, ends, groups, config, rng)
    with pytest.raises(ConfigError, match="insertions must ascend"):
        ProbeConfig(insertions=(4, 0))
    with pytest.raises(ConfigError, match=r"insertions must ascend from 0 or more, got \(\)"):
        ProbeConfig(insertions=())
    with pytest.raises(ConfigError, match="context 3 must hold a pattern of 4"):
        ProbeConfig(context=3)
    with pytest.raises(ConfigError, match="shown 5 must be 1 to half of context 8"):
        ProbeConfig(context=8, shown=5)
    with pytest.raises(ConfigError, match="noise is 1.5: it must be a probability, from 0 to 1"):
        ProbeConfig(noise=1.5)


def test_the_summary_tells_repetition_from_forgetting():
    ranks = {
        "repeated": np.array([[1.0, 2.0, 4.0], [8.0, 32.0, 16.0]]),
        "random": np.array([[1.0, 2.0, 4.0], [2.0, 4.0, 16.0]]),
    }
    unseen = {arm: 64 * ranks["random"] for arm in ranks} | {"repeated": 128 * ranks["random"]}
    result = summarise(ranks, unseen, (0, 4))
    assert result["arms"]["repeated"]["median_rank"] == [2.0, 16.0]
    assert result["arms"]["repeated"]["HR@10"] == [1.0, pytest.approx(1 / 3)]
    assert result["not_shown"]["random"]["median_rank"] == [128.0, 256.0]
    assert [entry["mean"] for entry in result["sink_not_shown"]] == [1.0, 1.0]
    assert [entry["mean"] for entry in result["sink"]] == [0.0, pytest.approx((2 + 3 + 0) / 3)]
    assert result["sink"][1]["standard_error"] == pytest.approx(np.sqrt(7 / 3 / 3))
