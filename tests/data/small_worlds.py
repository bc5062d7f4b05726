"""Worlds shared by the tests of generated worlds."""

import dataclasses
import functools

import numpy as np

from linseqrec.data.worlds import World, WorldConfig, generate

# All kinds of events are frequent. An absence lasts only seconds beyond its threshold, so that the
# mean over absences is a short sum.
SMALL = WorldConfig(
    num_users=40,
    num_items=30,
    num_categories=4,
    mean_length=30,
    min_length=12,
    zipf_exponent=0.7,
    taste_concentration=2.5,
    session_length=3,
    session_gap=600,
    absence_rate=0.4,
    absence_mean=5,
    drift_time=4,
    burst_start=0.3,
    burst_end=0.4,
    succession=0.3,
    num_successors=4,
    successor_within=0.5,
    num_motifs=3,
    motif_length=3,
    motif_start=0.25,
    motif_interrupt=0.3,
    oracle_events=8,
)


def last_events(world: World) -> tuple[np.ndarray, np.ndarray]:
    """The users and indices of all events whose probabilities the oracle knows."""
    per_user = world.config.oracle_events
    users = np.repeat(np.arange(world.dataset.num_users), per_user)
    events_from_end = np.tile(np.arange(1, per_user + 1), world.dataset.num_users)
    return users, world.dataset.offsets[users + 1] - events_from_end


@functools.cache
def large_world() -> World:
    """A world with enough events to compare their frequencies with the oracle's probabilities."""
    return generate(
        dataclasses.replace(
            SMALL,
            num_users=8_000,
            num_items=60,
            num_categories=6,
            absence_mean=60 * 86_400,
            drift_time=60 * 86_400,
        ),
        1,
    )
