"""Generated worlds: the statistics of their events, the presets, and worlds on disk."""

import dataclasses
import functools
import itertools
import json
import math

import numpy as np
import pytest

from linseqrec.config_fields import ConfigError
from linseqrec.data.source import DataConfig, load_source
from linseqrec.data.worlds import (
    BROWSE,
    BURST,
    HABIT,
    SUCCESSION,
    World,
    WorldConfig,
    WorldError,
    generate,
    resized,
    world_config,
)
from tests.data.small_worlds import SMALL, large_world, last_events

PRESETS = ("quick", "repetition", "drift", "ultra_long")


def test_the_same_seed_gives_the_same_bytes():
    first, again, other = generate(SMALL, 5), generate(SMALL, 5), generate(SMALL, 6)
    for name in ("items", "timestamps", "offsets"):
        assert getattr(first.dataset, name).tobytes() == getattr(again.dataset, name).tobytes()
    assert first.sources.tobytes() == again.sources.tobytes()
    assert first.latents.taste.tobytes() == again.latents.taste.tobytes()
    assert first.dataset.items.tobytes() != other.dataset.items.tobytes()


@pytest.mark.parametrize("exponent", [0.6, 1.1])
def test_popularity_is_zipf(exponent):
    config = WorldConfig(
        num_users=8_000,
        num_items=500,
        num_categories=20,
        mean_length=30,
        length_spread=0.3,
        zipf_exponent=exponent,
    )
    world = generate(config, 0)
    for events in (world.sources == BROWSE, np.ones(world.dataset.num_events, bool)):
        counts = np.bincount(world.dataset.items[events], minlength=501)[1:]
        rank = np.arange(1, 201)
        slope = np.polyfit(np.log(rank), np.log(np.sort(counts)[::-1][:200]), 1)[0]
        assert abs(-slope - exponent) < 0.1, slope


def test_successors_are_of_the_item_s_own_category_at_the_configured_rate():
    config = dataclasses.replace(SMALL, num_items=5_000, successor_within=0.7, zipf_exponent=1.0)
    catalogue = generate(config, 0).catalogue
    category, mass = catalogue.category, catalogue.category_mass
    same = category[catalogue.successors[1:]] == category[1:, None]
    expected = (0.7 + 0.3 * mass[category[1:]]).mean()
    assert abs(same.mean() - expected) < 4 * 0.5 / math.sqrt(same.size)
    # An item is a successor in proportion to its popularity.
    count = np.bincount(catalogue.successors[1:].ravel(), minlength=5_001)[1:]
    np.testing.assert_allclose(
        np.log(count[count > 50] / same.size),
        np.log(catalogue.popularity[1:][count > 50]),
        atol=0.6,
    )


@functools.cache
def small_preset(preset: str) -> World:
    users = 8 if preset == "ultra_long" else 200
    return generate(dataclasses.replace(world_config(preset), num_users=users), 0)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_gives_a_valid_data_set(preset):
    config, data = world_config(preset), small_preset(preset).dataset
    users = 8 if preset == "ultra_long" else 200
    assert data.num_users == users and data.num_items == config.num_items
    assert data.items.min() >= 1 and data.items.max() <= config.num_items
    gaps = np.diff(data.timestamps)
    gaps[data.offsets[1:-1] - 1] = 0  # between the events of two users
    assert gaps.min() >= 0
    assert data.timestamps.max() - data.timestamps.min() < 2**31
    lengths = np.diff(data.offsets)
    assert lengths.min() >= config.min_length
    assert abs(lengths.mean() / config.mean_length - 1) < 0.15
    if preset == "ultra_long":
        assert config.mean_length == 10_000 and lengths.min() > 8_000
    assert "synthetic" in data.card["source"]
    assert json.loads(json.dumps(data.card))["world"]["config"]["name"] == preset


def test_a_world_longer_than_int32_seconds_is_refused():
    config = dataclasses.replace(SMALL, absence_mean=40 * 365 * 86_400)
    with pytest.raises(WorldError, match="years, but int32 seconds hold 68: reduce mean_length"):
        generate(config, 0)


def test_tastes_drift_over_long_absences_only():
    world = generate(
        dataclasses.replace(SMALL, num_users=300, absence_mean=60 * 86_400, drift_time=60 * 86_400),
        0,
    )
    users, positions = last_events(world)
    inner = positions + 1 < world.dataset.offsets[users + 1]  # the state after it is known too
    users, positions = users[inner], positions[inner]
    slots = world.dataset.offsets[users + 1] - 1 - positions
    before = world.latents.taste[users, slots]
    after = world.latents.taste[users, slots - 1]
    gaps = world.dataset.timestamps[positions] - world.dataset.timestamps[positions - 1]
    absent = gaps >= SMALL.absence_after
    assert 100 < absent.sum() < len(absent) / 2
    changed = np.abs(after - before).sum(axis=1) > 0
    np.testing.assert_array_equal(changed, absent)
    # The gap determines the share of the old taste. The rest is a new taste, with mean `mass`.
    old_share = np.exp(-(gaps[absent] - SMALL.absence_after) / (60 * 86_400))[:, None]
    new_taste = (after[absent] - old_share * before[absent]) / (1 - old_share)
    assert new_taste.min() > -1e-9
    np.testing.assert_allclose(after.sum(axis=1), 1, rtol=1e-12)
    mass = world.catalogue.category_mass
    np.testing.assert_allclose(new_taste.mean(axis=0), mass, atol=4 * 0.5 / math.sqrt(absent.sum()))


def test_sessions_absences_and_bursts_occur_at_their_rates():
    world = large_world()
    config, data = world.config, world.dataset
    inner = np.ones(data.num_events, bool)
    inner[data.offsets[:-1]] = False
    gaps = np.diff(data.timestamps, prepend=0)[inner]
    new = gaps >= config.session_timeout
    deviation = math.sqrt(len(new) * (1 / 3) * (2 / 3))
    assert abs(new.sum() - len(new) / config.session_length) < 4 * deviation
    absent = (gaps >= config.absence_after).sum()
    expected = new.sum() * config.absence_rate
    assert abs(absent - expected) < 4 * math.sqrt(expected)
    beyond = (gaps[gaps >= config.absence_after] - config.absence_after).mean()
    assert abs(beyond / config.absence_mean - 1) < 4 / math.sqrt(absent)
    assert 1.5 < np.median(gaps[~new]) / config.session_gap * 2 < 2.5
    # Two neighbouring burst events of a session are of one category, except by a new burst.
    category = world.catalogue.category[data.items]
    pair = (world.sources[1:] == BURST) & (world.sources[:-1] == BURST)
    pair &= np.diff(data.timestamps) < config.session_timeout
    pair[data.offsets[1:-1] - 1] = False
    same = (category[1:] == category[:-1])[pair].mean()
    new_burst = config.burst_end * config.burst_start
    same_burst = (1 - config.burst_end) / (1 - config.burst_end + new_burst)
    by_chance = (world.catalogue.category_mass**2).sum()
    expected = same_burst + (1 - same_burst) * by_chance
    assert abs(same - expected) < 4 * 0.5 / math.sqrt(pair.sum())


def test_habits_and_successors_repeat_known_sequences():
    world = large_world()
    data, motifs = world.dataset, world.latents.motifs
    steps_to_place = np.zeros(world.config.motif_length, int)
    for user in range(50):
        own = slice(data.offsets[user], data.offsets[user + 1])
        items = data.items[own][world.sources[own] == HABIT]
        for step in itertools.pairwise(items):
            places = np.argwhere(
                (motifs[user, :, :-1] == step[0]) & (motifs[user, :, 1:] == step[1])
            )
            assert len(places) or step[1] in motifs[user, :, 0]
            steps_to_place[places[:, 1] + 1] += 1
    assert steps_to_place[1:].min() > 50  # habits continue to their last item
    # An event of a succession is a successor of the item before it.
    events = np.flatnonzero(world.sources == SUCCESSION)
    successors = world.catalogue.successors[data.items[events - 1]]
    assert np.all((successors == data.items[events, None]).any(axis=1))


def test_the_repetition_preset_repeats_twice_as_often_as_quick():
    rates = {}
    for preset in ("quick", "repetition"):
        config = dataclasses.replace(
            world_config(preset), num_users=300, mean_length=100, length_spread=0
        )
        items = generate(config, 0).dataset.items.reshape(300, 100).astype(np.int64)
        pairs = items[:, :-1] * 10_000 + items[:, 1:]
        rates[preset] = 1 - np.mean([len(np.unique(row)) / len(row) for row in pairs])
    assert rates["repetition"] > 2 * rates["quick"] > 0


def test_tastes_of_the_drift_preset_need_the_gaps():
    """Events since the last absence estimate the taste better than any fixed number of events."""
    world = small_preset("drift")
    config, data, catalogue = world.config, world.dataset, world.catalogue

    def mean_error(select) -> float:
        """The mean error over users of tastes estimated from the selected part of each history."""
        result = 0.0
        for user, (start, end) in enumerate(itertools.pairwise(data.offsets)):
            items = data.items[start : end - 1]
            part = items[select(data.timestamps[start : end - 1])]
            counts = np.bincount(catalogue.category[part], minlength=config.num_categories)
            taste = counts + config.taste_concentration * catalogue.category_mass
            result += np.abs(taste / taste.sum() - world.latents.taste[user, 0]).sum()
        return result / data.num_users

    def since_the_absence(times: np.ndarray) -> slice:
        absences = np.flatnonzero(np.diff(times) >= config.absence_after)
        return slice(int(absences[-1]) + 1 if len(absences) else 0, None)

    def last_events_only(count: int):
        return lambda times: slice(-count, None)

    best = min(mean_error(last_events_only(count)) for count in (5, 10, 20, 40, 80, 10_000))
    assert mean_error(since_the_absence) < 0.9 * best


def test_habits_of_ultra_long_histories_recur_after_thousands_of_events():
    world = small_preset("ultra_long")
    data, ages = world.dataset, []
    for start, end in itertools.pairwise(data.offsets):
        pairs = data.items[start : end - 1].astype(np.int64) * 10_000 + data.items[start + 1 : end]
        for event in np.flatnonzero(world.sources[start + 1 : end] == HABIT)[-100:]:
            before = np.flatnonzero(pairs[:event] == pairs[event])
            ages.append(event - before[-1] if len(before) else np.inf)
    # Many pairs of items that recur are farther back than a window of 200 or 1,000 events.
    within = {window: np.mean(np.array(ages) <= window) for window in (200, 1_000, 10_000)}
    assert within[1_000] > within[200] + 0.15
    assert within[10_000] > within[1_000] + 0.15


def test_resizing_a_world_changes_only_its_size():
    world = world_config("ultra_long")
    smaller = resized(world, num_users=60, mean_length=300, num_items=1_000)
    assert smaller == dataclasses.replace(
        world,
        num_users=60,
        mean_length=300,
        min_length=150,
        num_items=1_000,
        num_categories=50,
    )
    assert resized(world) == world
    assert resized(world, num_items=7).num_categories == 1
    with pytest.raises(ConfigError, match="num_items is 0: it must be at least 1"):
        resized(world, num_items=0)


def test_a_data_config_sets_the_size_of_its_world():
    config = DataConfig(world="drift", world_users=40, world_length=30, world_items=80)
    world = load_source(config).world
    assert world.config == resized(world_config("drift"), 40, 30, 80)
    assert (world.dataset.num_users, world.dataset.num_items) == (40, 80)


# The wrong parameters, and the error message.
INVALID_PARAMETERS = [
    ({"num_users": 0}, "num_users is 0: it must be at least 1"),
    ({"motif_length": 1}, "motif_length is 1: it must be at least 2"),
    ({"succession": 1.5}, "succession is 1.5: it must be a probability, from 0 to 1"),
    ({"burst_end": float("nan")}, "burst_end is nan: it must be a finite number"),
    ({"session_length": float("nan")}, "session_length is nan: it must be a finite number"),
    ({"num_categories": 31}, "num_categories is 31: it must be at most num_items=30"),
    ({"taste_concentration": 0.0}, "taste_concentration is 0.0: it must be at least 0.05"),
    ({"oracle_events": 12}, "oracle_events is 12: it must be below min_length=12"),
    ({"mean_length": 5}, "mean_length is 5: it must be at least min_length=12"),
    ({"absence_after": 600}, "absence_after is 600: it must be above session_timeout=1800"),
]


@pytest.mark.parametrize(
    ("fields", "message"),
    INVALID_PARAMETERS,
    ids=[f"{name}={value}" for fields, _ in INVALID_PARAMETERS for name, value in fields.items()],
)
def test_parameters_out_of_range_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(SMALL, **fields)


def test_an_unknown_preset_or_negative_seed_is_refused():
    message = "world is 'quik': it must be one of quick, repetition, drift, ultra_long"
    with pytest.raises(WorldError, match=message):
        world_config("quik")
    with pytest.raises(WorldError, match="seed is -1: it must be at least 0"):
        generate(SMALL, -1)
