"""The oracle of a generated world: its definition, its calibration, and its errors."""

import dataclasses
import math

import numpy as np
import pytest

from linseqrec.data.worlds import World, WorldError, generate, oracle_scores, world_config
from tests.data.small_worlds import SMALL, large_world, last_events


def distribution(world: World, user: int, position: int, gap: int | None) -> list[float]:
    """The probabilities of the next item, summed over every way in which the event can happen."""
    config, catalogue, latents = world.config, world.catalogue, world.latents
    slot = int(world.dataset.offsets[user + 1]) - 1 - position
    taste = latents.taste[user, slot].tolist()
    mass = [0.0] * config.num_categories
    for item in range(1, config.num_items + 1):
        mass[catalogue.category[item]] += catalogue.popularity[item]
    result = [0.0] * (config.num_items + 1)

    def browse(weight: float, category: int) -> None:
        for item in range(1, config.num_items + 1):
            if catalogue.category[item] == category:
                result[item] += weight * catalogue.popularity[item] / mass[category]

    def ordinary(weight: float, new: bool, burst: int, taste: list[float]) -> None:
        if not new:
            last = world.dataset.items[position - 1]
            ranks = range(1, config.num_successors + 1)
            for rank, item in zip(ranks, catalogue.successors[last], strict=True):
                share = 1 / rank / sum(1 / other for other in ranks)
                result[item] += weight * config.succession * share
            weight *= 1 - config.succession
        if burst >= 0:
            browse(weight, burst)
        else:
            for category, share in enumerate(taste):
                browse(weight * share, category)

    def event(weight: float, new: bool, burst: int, taste: list[float]) -> None:
        place = 0 if new else int(latents.place[user, slot])
        if place:
            habit = latents.motifs[user, latents.habit[user, slot]]
            result[habit[place]] += weight * (1 - config.motif_interrupt)
            ordinary(weight * config.motif_interrupt, new, burst, taste)
            return
        ranks = range(1, config.num_motifs + 1)
        for rank, habit in zip(ranks, latents.motifs[user], strict=True):
            share = 1 / rank / sum(1 / other for other in ranks)
            result[habit[0]] += weight * config.motif_start * share
        ordinary(weight * (1 - config.motif_start), new, burst, taste)

    def bursts(weight: float, new: bool, taste: list[float]) -> None:
        burst = int(latents.burst[user, slot])
        if burst >= 0 and not new:
            event(weight * (1 - config.burst_end), new, burst, taste)
            weight *= config.burst_end
        for category, share in enumerate(mass):
            event(weight * config.burst_start * share, new, category, taste)
        event(weight * (1 - config.burst_start), new, -1, taste)

    def drifted(old_share: float) -> list[float]:
        pairs = zip(taste, mass, strict=True)
        return [old_share * old + (1 - old_share) * mean for old, mean in pairs]

    if gap is None:
        new_session = 1 / config.session_length
        bursts(1 - new_session, False, taste)
        bursts(new_session * (1 - config.absence_rate), True, taste)
        for beyond in range(130):
            probability = math.exp(-beyond / config.absence_mean)
            probability -= math.exp(-(beyond + 1) / config.absence_mean)
            old_share = math.exp(-beyond / config.drift_time)
            bursts(new_session * config.absence_rate * probability, True, drifted(old_share))
    elif gap < config.session_timeout:
        bursts(1.0, False, taste)
    elif gap < config.absence_after:
        bursts(1.0, True, taste)
    else:
        old_share = math.exp(-(gap - config.absence_after) / config.drift_time)
        bursts(1.0, True, drifted(old_share))
    return result


@pytest.mark.parametrize("request_time", ["hidden", "known"])
def test_the_oracle_equals_the_definition(request_time):
    world = generate(SMALL, 3)
    users, positions = last_events(world)
    chosen = np.random.default_rng(0).choice(len(users), 40, replace=False)
    users, positions = users[chosen], positions[chosen]
    scores = oracle_scores(world, users, positions, request_time=request_time)
    assert scores.dtype == np.float32
    assert np.all(scores[:, 0] == -np.inf)
    times = world.dataset.timestamps
    kinds_of_gap = set()
    for row, user, position in zip(scores, users, positions, strict=True):
        gap = int(times[position] - times[position - 1])
        kinds_of_gap.add((gap >= SMALL.session_timeout, gap >= SMALL.absence_after))
        known = gap if request_time == "known" else None
        expected = distribution(world, user, position, known)
        np.testing.assert_allclose(row[1:], expected[1:], rtol=1e-5, atol=1e-7)
        assert abs(sum(expected) - 1) < 1e-9
    assert len(kinds_of_gap) == 3  # within a session, a new session, an absence


@pytest.mark.parametrize("request_time", ["hidden", "known"])
def test_frequencies_of_events_match_the_oracle(request_time):
    world = large_world()
    users, positions = last_events(world)
    assert len(users) == 64_000
    scores = oracle_scores(world, users, positions, request_time=request_time)
    probabilities = scores[:, 1:].astype(np.float64)
    occurred = np.zeros_like(probabilities)
    occurred[np.arange(len(users)), world.dataset.items[positions] - 1] = 1
    slots = world.dataset.offsets[users + 1] - 1 - positions
    gaps = world.dataset.timestamps[positions] - world.dataset.timestamps[positions - 1]
    situations = {
        "any": np.ones(len(users), bool),
        "in a habit": world.latents.place[users, slots] > 0,
        "in a burst": world.latents.burst[users, slots] >= 0,
    }
    burst = world.latents.burst[users, slots]
    in_burst_category = (world.catalogue.category[1:] == burst[:, None]) & (burst >= 0)[:, None]
    p = np.where(in_burst_category, probabilities, 0).sum(axis=1)
    hits = np.where(in_burst_category, occurred, 0).sum(axis=1)
    error = (hits.sum() - p.sum()) / math.sqrt((p * (1 - p)).sum())
    assert abs(error) < 4, f"items of the burst's category: {error:.1f} sd"
    if request_time == "known":
        new, absent = gaps >= SMALL.session_timeout, gaps >= SMALL.absence_after
        situations |= {
            "within a session": ~new,
            "new session": new & ~absent,
            "after an absence": absent,
        }
    for name, rows in situations.items():
        p, hits = probabilities[rows], occurred[rows]
        # Items of similar probability together, from rare to likely.
        edges = np.array([0, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.01])
        for low, high in zip(edges[:-1], edges[1:], strict=True):
            inside = (p >= low) & (p < high)
            deviation = math.sqrt((p * (1 - p))[inside].sum())
            if deviation > 10:  # the sum is then about normal
                error = (hits[inside].sum() - p[inside].sum()) / deviation
                assert abs(error) < 4, f"{name}, probabilities {low} to {high}: {error:.1f} sd"
        # The log-likelihood of the events, against its expectation, the negative entropy.
        log = np.log(np.maximum(p, 1e-30))
        mean = (p * log).sum(axis=1)
        variance = (p * log**2).sum(axis=1) - mean**2
        error = ((hits * log).sum() - mean.sum()) / math.sqrt(variance.sum())
        assert abs(error) < 4, f"{name}: log-likelihood off by {error:.1f} sd"


def test_the_number_of_saved_states_changes_no_event():
    few = generate(dataclasses.replace(SMALL, oracle_events=1), 2)
    many = generate(dataclasses.replace(SMALL, oracle_events=10), 2)
    np.testing.assert_array_equal(few.dataset.items, many.dataset.items)
    np.testing.assert_array_equal(few.dataset.timestamps, many.dataset.timestamps)
    last = few.dataset.offsets[1:] - 1
    users = np.arange(len(last))
    np.testing.assert_array_equal(oracle_scores(few, users, last), oracle_scores(many, users, last))


def hit_rate(scores: np.ndarray, targets: np.ndarray) -> float:
    """HR@10 over the whole catalogue; tied items share their mean rank."""
    own = scores[np.arange(len(targets)), targets, None]
    ranks = 1 + (scores[:, 1:] > own).sum(axis=1) + ((scores[:, 1:] == own).sum(axis=1) - 1) / 2
    return float((ranks <= 10).mean())


def test_the_oracle_of_the_quick_preset_is_far_above_the_baselines():
    world = generate(world_config("quick"), 0)
    data, users = world.dataset, np.arange(2_000)
    last = data.offsets[1:] - 1
    train = np.ones(data.num_events, bool)
    train[last] = False
    popularity = np.bincount(data.items[train], minlength=data.num_items + 1)
    train[data.offsets[:-1]] = False
    events = np.flatnonzero(train)
    transitions = np.zeros((data.num_items + 1, data.num_items + 1), np.float32)
    np.add.at(transitions, (data.items[events - 1], data.items[events]), 1)
    targets = data.items[last]
    popular = hit_rate(np.broadcast_to(popularity, (2_000, data.num_items + 1)), targets)
    markov = hit_rate(transitions[data.items[last - 1]], targets)
    oracle = hit_rate(oracle_scores(world, users, last), targets)
    assert popular + 0.1 < markov < oracle - 0.15
    assert 0.5 < oracle < 0.7
    # The oracle is calibrated: its hit rate is the mean probability of its ten best items.
    scores = oracle_scores(world, users, last)[:, 1:]
    expected = np.sort(scores, axis=1)[:, -10:].sum(axis=1)
    assert abs(expected.mean() - oracle) < 4 * math.sqrt((expected * (1 - expected)).sum()) / 2_000


def test_the_oracle_refuses_events_whose_state_it_does_not_know():
    world = generate(SMALL, 0)
    end = int(world.dataset.offsets[1])
    with pytest.raises(WorldError, match=f"the last 8 events of user 0, {end - 8} to {end - 1}"):
        oracle_scores(world, np.array([0]), np.array([end - 9]))
    with pytest.raises(WorldError, match=f"but not event {end}: raise oracle_events"):
        oracle_scores(world, np.array([0]), np.array([end]))
    with pytest.raises(WorldError, match="users runs from 40 to 40: it must be from 0 to 39"):
        oracle_scores(world, np.array([40]), np.array([end - 1]))
    message = "request_time is 'guessed': it must be 'hidden' or 'known'"
    with pytest.raises(WorldError, match=message):
        oracle_scores(world, np.array([0]), np.array([end - 1]), request_time="guessed")
