import dataclasses
import math

import numpy as np
import pytest

from linseqrec.data.worlds import World, WorldError, generate, world_config
from tests.data.small_worlds import SMALL, last_events, observed


def distribution(world: World, user: int, position: int, gap: int | None) -> list[float]:
    """The next item's probabilities, by following every course the event can take."""
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

    def drifted(stays: float) -> list[float]:
        pairs = zip(taste, mass, strict=True)
        return [stays * old + (1 - stays) * mean for old, mean in pairs]

    if gap is None:
        begins = 1 / config.session_length
        bursts(1 - begins, False, taste)
        bursts(begins * (1 - config.absence_rate), True, taste)
        for beyond in range(130):
            chance = math.exp(-beyond / config.absence_mean)
            chance -= math.exp(-(beyond + 1) / config.absence_mean)
            stays = math.exp(-beyond / config.drift_time)
            bursts(begins * config.absence_rate * chance, True, drifted(stays))
    elif gap < config.session_timeout:
        bursts(1.0, False, taste)
    elif gap < config.absence_after:
        bursts(1.0, True, taste)
    else:
        stays = math.exp(-(gap - config.absence_after) / config.drift_time)
        bursts(1.0, True, drifted(stays))
    return result


@pytest.mark.parametrize("request_time", ["hidden", "known"])
def test_oracle_is_the_definition(request_time):
    world = generate(SMALL, 3)
    users, positions = last_events(world)
    chosen = np.random.default_rng(0).choice(len(users), 40, replace=False)
    users, positions = users[chosen], positions[chosen]
    scores = world.oracle_scores(users, positions, request_time=request_time)
    assert scores.dtype == np.float32
    assert np.all(scores[:, 0] == -np.inf)
    times = world.dataset.timestamps
    seen = set()
    for row, user, position in zip(scores, users, positions, strict=True):
        gap = int(times[position] - times[position - 1])
        seen.add((gap >= SMALL.session_timeout, gap >= SMALL.absence_after))
        known = gap if request_time == "known" else None
        expected = distribution(world, user, position, known)
        np.testing.assert_allclose(row[1:], expected[1:], rtol=1e-5, atol=1e-7)
        assert abs(sum(expected) - 1) < 1e-9
    assert len(seen) == 3  # within a session, a new one, an absence


@pytest.mark.parametrize("request_time", ["hidden", "known"])
def test_events_happen_as_often_as_the_oracle_says(request_time):
    world = observed()
    users, positions = last_events(world)
    assert len(users) == 64_000
    scores = world.oracle_scores(users, positions, request_time=request_time)
    chances = scores[:, 1:].astype(np.float64)
    happened = np.zeros_like(chances)
    happened[np.arange(len(users)), world.dataset.items[positions] - 1] = 1
    slots = world.dataset.offsets[users + 1] - 1 - positions
    gaps = world.dataset.timestamps[positions] - world.dataset.timestamps[positions - 1]
    situations = {
        "any": np.ones(len(users), bool),
        "in a habit": world.latents.place[users, slots] > 0,
        "in a burst": world.latents.burst[users, slots] >= 0,
    }
    burst = world.latents.burst[users, slots]
    of_the_burst = (world.catalogue.category[1:] == burst[:, None]) & (burst >= 0)[:, None]
    p, hits = (np.where(of_the_burst, part, 0).sum(axis=1) for part in (chances, happened))
    error = (hits.sum() - p.sum()) / math.sqrt((p * (1 - p)).sum())
    assert abs(error) < 4, f"items of the burst's category: {error:.1f} sd"
    if request_time == "known":
        new, absent = gaps >= SMALL.session_timeout, gaps >= SMALL.absence_after
        situations |= {"in a session": ~new, "returned": new & ~absent, "absent": absent}
    for name, rows in situations.items():
        p, hits = chances[rows], happened[rows]
        # By how probable: few, rare, common, likely.
        edges = np.array([0, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.01])
        for low, high in zip(edges[:-1], edges[1:], strict=True):
            inside = (p >= low) & (p < high)
            deviation = math.sqrt((p * (1 - p))[inside].sum())
            if deviation > 10:  # about normal from there
                error = (hits[inside].sum() - p[inside].sum()) / deviation
                assert abs(error) < 4, f"{name}, probabilities {low} to {high}: {error:.1f} sd"
        # The surprise of what happened, against its mean, the entropy.
        log = np.log(np.maximum(p, 1e-30))
        mean = (p * log).sum(axis=1)
        variance = (p * log**2).sum(axis=1) - mean**2
        error = ((hits * log).sum() - mean.sum()) / math.sqrt(variance.sum())
        assert abs(error) < 4, f"{name}: surprise off by {error:.1f} sd"


def test_keeping_more_states_changes_no_event():
    few, many = (generate(dataclasses.replace(SMALL, oracle_events=kept), 2) for kept in (1, 10))
    np.testing.assert_array_equal(few.dataset.items, many.dataset.items)
    np.testing.assert_array_equal(few.dataset.timestamps, many.dataset.timestamps)
    last = few.dataset.offsets[1:] - 1
    users = np.arange(len(last))
    np.testing.assert_array_equal(few.oracle_scores(users, last), many.oracle_scores(users, last))


def hit_rate(scores: np.ndarray, targets: np.ndarray) -> float:
    """HR@10 over the catalogue, mean ties."""
    own = scores[np.arange(len(targets)), targets, None]
    ranks = 1 + (scores[:, 1:] > own).sum(axis=1) + ((scores[:, 1:] == own).sum(axis=1) - 1) / 2
    return float((ranks <= 10).mean())


def test_quick_has_room_between_floors_and_oracle():
    world = generate(world_config("quick"), 0)
    data, users = world.dataset, np.arange(2_000)
    last = data.offsets[1:] - 1
    train = np.ones(data.num_events, bool)
    train[last] = False
    popularity = np.bincount(data.items[train], minlength=data.num_items + 1)
    train[data.offsets[:-1]] = False
    at = np.flatnonzero(train)
    markov = np.zeros((data.num_items + 1, data.num_items + 1), np.float32)
    np.add.at(markov, (data.items[at - 1], data.items[at]), 1)
    targets = data.items[last]
    popular = hit_rate(np.broadcast_to(popularity, (2_000, data.num_items + 1)), targets)
    counts = hit_rate(markov[data.items[last - 1]], targets)
    oracle = hit_rate(world.oracle_scores(users, last), targets)
    assert popular + 0.1 < counts < oracle - 0.15
    assert 0.5 < oracle < 0.7
    # It is calibrated: it hits as often as it says.
    scores = world.oracle_scores(users, last)[:, 1:]
    said = np.sort(scores, axis=1)[:, -10:].sum(axis=1)
    assert abs(said.mean() - oracle) < 4 * math.sqrt((said * (1 - said)).sum()) / 2_000


def test_the_oracle_refuses_events_it_does_not_know():
    world = generate(SMALL, 0)
    end = int(world.dataset.offsets[1])
    with pytest.raises(WorldError, match=f"the last 8 events of user 0, {end - 8} to {end - 1}"):
        world.oracle_scores(np.array([0]), np.array([end - 9]))
    with pytest.raises(WorldError, match=f"not event {end}"):
        world.oracle_scores(np.array([0]), np.array([end]))
    with pytest.raises(WorldError, match="numbered 0 to 39"):
        world.oracle_scores(np.array([40]), np.array([end - 1]))
    with pytest.raises(WorldError, match="'hidden' or 'known', not 'guessed'"):
        world.oracle_scores(np.array([0]), np.array([end - 1]), request_time="guessed")
