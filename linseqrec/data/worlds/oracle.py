"""The oracle of a generated world, which knows the true distribution of the next item."""

from typing import Literal

import numpy as np

from linseqrec.data.worlds.config import WorldError
from linseqrec.data.worlds.generation import World


def oracle_scores(
    world: World,
    users: np.ndarray,
    positions: np.ndarray,
    *,
    request_time: Literal["hidden", "known"] = "hidden",
) -> np.ndarray:
    """The true probability of every item at each event, from the user's earlier events.

    On average, no ranking has a better HR or NDCG than the ranking by these probabilities.

    Args:
      world: The world.
      users: int [M], indices of users.
      positions: int [M], event indices in the data set. Each event must be one of the last
        `config.oracle_events` of its user.
      request_time: "known" if the oracle also reads the time of the event, for a comparison
        with models that read it; else "hidden". The oracle never reads the new taste after an
        absence.

    Returns:
      float32 [M, N + 1]. Column 0, padding, is -inf; the other columns of a row sum to 1.

    Raises:
      WorldError: An event is of another user, or the oracle does not know the state before it.
    """
    users, positions = np.asarray(users, np.int64), np.asarray(positions, np.int64)
    slots = _slots(world, users, positions)
    config, mass = world.config, world.catalogue.category_mass
    rows = np.arange(len(users))
    taste = world.latents.taste[users, slots]
    burst = world.latents.burst[users, slots]
    place = world.latents.place[users, slots]
    new, old_share = _session_starts(world, positions, request_time)
    within = 1 - new

    # The probability of each kind of event, [M], summed over both cases of `new`.
    in_habit = place > 0
    continues_habit = within * np.where(in_habit, 1 - config.motif_interrupt, 0)
    starts_habit = (within * np.where(in_habit, 0, 1) + new) * config.motif_start
    ordinary = within * np.where(in_habit, config.motif_interrupt, 1 - config.motif_start)
    successor = ordinary * config.succession
    browses_within = ordinary - successor
    browses_new = new * (1 - config.motif_start)

    # The probability that the event browses in each category, [M, C].
    in_old_burst = browses_within * np.where(burst >= 0, 1 - config.burst_end, 0)
    not_in_old_burst = browses_within - in_old_burst
    by_taste = (1 - config.burst_start) * (not_in_old_burst + browses_new * old_share)
    by_mass = config.burst_start * (not_in_old_burst + browses_new)
    by_mass += (1 - config.burst_start) * browses_new * (1 - old_share)
    categories = by_taste[:, None] * taste + by_mass[:, None] * mass
    categories[rows, burst] += in_old_burst  # without a burst, index -1 and probability 0

    share = world.catalogue.popularity[1:] / mass[world.catalogue.category[1:]]
    scores = np.full((len(users), config.num_items + 1), -np.inf)
    scores[:, 1:] = categories[:, world.catalogue.category[1:]] * share
    last = world.dataset.items[positions - 1]
    for rank, weight in enumerate(world.catalogue.successor_weights):
        scores[rows, world.catalogue.successors[last, rank]] += successor * weight
    motifs = world.latents.motifs[users]
    for habit, weight in enumerate(world.catalogue.motif_weights):
        scores[rows, motifs[:, habit, 0]] += starts_habit * weight
    scores[rows, motifs[rows, world.latents.habit[users, slots], place]] += continues_habit
    return scores.astype(np.float32)


def _slots(world: World, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """int64 [M], the number of later events of the same user; 0 for his last event."""
    offsets, num_known = world.dataset.offsets, world.config.oracle_events
    if len(users) and not (0 <= users.min() and users.max() < len(offsets) - 1):
        raise WorldError(
            f"users runs from {users.min()} to {users.max()}: it must be from 0 to "
            f"{len(offsets) - 2}"
        )
    slots = offsets[users + 1] - 1 - positions
    unknown = np.flatnonzero((slots < 0) | (slots >= num_known))
    if len(unknown):
        user, position = users[unknown[0]], positions[unknown[0]]
        raise WorldError(
            f"the oracle knows the last {num_known} events of user {user}, "
            f"{offsets[user + 1] - num_known} to {offsets[user + 1] - 1}, but not event "
            f"{position}: raise oracle_events of the world's configuration"
        )
    return slots


def _session_starts(
    world: World, positions: np.ndarray, request_time: str
) -> tuple[np.ndarray, np.ndarray]:
    """The probability that each event begins a session, and the mean share of the old taste.

    Returns:
      float64 [M], the probability.
      float64 [M], the expected share of the old taste in the taste at a new session. The mean
      of the other share is the category mass.
    """
    config = world.config
    if request_time == "known":
        times = world.dataset.timestamps
        gaps = times[positions] - times[positions - 1]
        beyond = np.maximum(gaps - config.absence_after, 0)
        new = (gaps >= config.session_timeout).astype(np.float64)
        return new, np.exp(-beyond / config.drift_time)
    if request_time != "hidden":
        raise WorldError(f"request_time is {request_time!r}: it must be 'hidden' or 'known'")
    # The mean of exp(-n / h) for n = floor(Exponential(mean tau)).
    per_second = 1 / config.absence_mean
    mean = np.expm1(-per_second) / np.expm1(-per_second - 1 / config.drift_time)
    old_share = 1 - config.absence_rate * (1 - mean)
    return (
        np.full(len(positions), 1 / config.session_length),
        np.full(len(positions), old_share),
    )
