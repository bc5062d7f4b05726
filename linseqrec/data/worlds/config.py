"""What a generated world is made of: `WorldConfig`, and the presets."""

import dataclasses

from linseqrec.errors import UserError


class WorldError(UserError, ValueError):
    """A world that cannot be made, recreated, or asked for this."""


@dataclasses.dataclass(frozen=True)
class WorldConfig:
    """The numbers behind the equations of `linseqrec.data.worlds`, whose symbols stand in brackets.

    Attributes:
      name: What the card calls the world.
      num_users: U.
      num_items: N.
      num_categories: C, categories of items; at most N.
      mean_length: Events of a history, on average over users.
      length_spread: Standard deviation of the logarithm of a history's length; 0 makes all equal.
      min_length: Events; shorter histories are lengthened to it.
      zipf_exponent: [s] an item's popularity is its rank to the power -s.
      taste_concentration: [kappa] of the Dirichlet that tastes come from; 1 gives a user about one
        favourite category, C gives broad tastes; at least 0.05.
      session_length: [1 / eta] events of a session, on average; at least 1.
      session_gap: Seconds, the median gap between events of one session.
      session_timeout: [G_1] seconds; every gap in a session is shorter, every other one is not.
      return_gap: Seconds, the median of what passes beyond the timeout between two sessions.
      gap_spread: Standard deviation of the logarithm of both gaps above.
      absence_rate: [alpha] probability that a new session comes after a long absence.
      absence_after: [G_2] seconds; absences, and only they, last at least so long.
      absence_mean: [tau] seconds, the mean of what an absence lasts beyond `absence_after`.
      drift_time: [h] seconds beyond `absence_after` that leave 1/e of the old taste.
      burst_start: [b_+] probability, at an event outside a burst, that one starts.
      burst_end: [b_-] probability, at an event in a burst, that it is over; a new session ends it.
      succession: [rho] probability that an ordinary event within a session follows on from the
        item before it.
      num_successors: [S] items that may follow on from an item.
      successor_within: Probability that a successor is of the item's own category.
      num_motifs: [M] habits of a user.
      motif_length: [L] items of a habit; at least 2.
      motif_start: [mu] probability that an event starts a habit, when none is under way.
      motif_interrupt: [delta] probability that another item comes in the midst of a habit, which
        then goes on after it.
      oracle_events: Last events of each user whose latent states are kept for the oracle; fewer
        than `min_length`. 2 serve leave-one-out validation and test.
    """

    name: str = "custom"
    num_users: int = 2_000
    num_items: int = 1_000
    num_categories: int = 125
    mean_length: float = 80.0
    length_spread: float = 0.5
    min_length: int = 10
    zipf_exponent: float = 0.6
    taste_concentration: float = 4.0
    session_length: float = 10.0
    session_gap: float = 60.0
    session_timeout: int = 1_800
    return_gap: float = 86_400.0
    gap_spread: float = 1.0
    absence_rate: float = 0.02
    absence_after: int = 30 * 86_400
    absence_mean: float = 60 * 86_400.0
    drift_time: float = 60 * 86_400.0
    burst_start: float = 0.02
    burst_end: float = 0.2
    succession: float = 0.15
    num_successors: int = 3
    successor_within: float = 0.8
    num_motifs: int = 3
    motif_length: int = 4
    motif_start: float = 0.05
    motif_interrupt: float = 0.1
    oracle_events: int = 2

    def __post_init__(self) -> None:
        """Refuses numbers that describe no world.

        Raises:
          WorldError: Names the field, its value and what it must be.
        """
        _need(self, 1, "num_users", "num_items", "num_categories", "num_successors", "num_motifs")
        _need(self, 1, "session_length", "session_gap", "session_timeout", "return_gap")
        _need(self, 1, "absence_mean", "drift_time", "oracle_events")
        _need(self, 2, "motif_length")
        _need(self, 0.05, "taste_concentration")  # below it, all gammas of a taste may underflow
        _need(self, 0, "length_spread", "gap_spread", "zipf_exponent")
        for field in (
            "absence_rate burst_start burst_end succession successor_within motif_start "
            "motif_interrupt"
        ).split():
            if not 0 <= getattr(self, field) <= 1:
                raise WorldError(f"{field}={getattr(self, field)} is no probability")
        if self.num_categories > self.num_items:
            raise WorldError(
                f"num_categories={self.num_categories} exceeds num_items={self.num_items}"
            )
        if self.min_length <= self.oracle_events or self.mean_length < self.min_length:
            raise WorldError(
                f"oracle_events={self.oracle_events} < min_length={self.min_length} <= "
                f"mean_length={self.mean_length} does not hold"
            )
        if self.absence_after <= self.session_timeout:
            raise WorldError(
                f"absence_after={self.absence_after} must exceed "
                f"session_timeout={self.session_timeout}"
            )


def _need(config: WorldConfig, least: float, *fields: str) -> None:
    for field in fields:
        if not getattr(config, field) >= least:
            raise WorldError(f"{field}={getattr(config, field)} must be at least {least}")


_QUICK = WorldConfig(name="quick")
_PRESETS = (
    _QUICK,
    # Over half of the events are habits, others come in their midst: what recurs fills a compressed
    # state, while what tells of tastes is rare (SinkRec's sink).
    dataclasses.replace(
        _QUICK,
        name="repetition",
        mean_length=200.0,
        motif_length=5,
        motif_start=0.35,
        motif_interrupt=0.25,
    ),
    # An absence in about 33 events, and little of a taste outlives it: only the gap tells how much
    # of the past still counts (HyTRec's decay over elapsed time).
    dataclasses.replace(
        _QUICK,
        name="drift",
        mean_length=200.0,
        taste_concentration=1.5,
        absence_rate=0.3,
        drift_time=15 * 86_400.0,
        burst_start=0.01,
        motif_start=0.01,
    ),
    # Broad tastes, and fifty habits of which most come once in a thousand events or less: a model
    # that sees the last few hundred has not seen them.
    dataclasses.replace(
        _QUICK,
        name="ultra_long",
        num_users=500,
        num_items=5_000,
        num_categories=250,
        mean_length=10_000.0,
        length_spread=0.05,
        min_length=5_000,
        taste_concentration=8.0,
        absence_rate=0.002,
        num_motifs=50,
        motif_start=0.1,
    ),
)


def world_config(preset: str) -> WorldConfig:
    """The configuration of a preset: `quick`, `repetition`, `drift` or `ultra_long`.

    Raises:
      WorldError: No such preset; names those there are.
    """
    known = {config.name: config for config in _PRESETS}
    if preset not in known:
        raise WorldError(f"no world is called {preset!r}; there are {', '.join(known)}")
    return known[preset]


def resized(
    config: WorldConfig,
    num_users: int | None = None,
    mean_length: float | None = None,
    num_items: int | None = None,
) -> WorldConfig:
    """A world of other size, everything else being equal.

    Args:
      config: The world.
      num_users: None keeps its own.
      mean_length: Events of a history, on average; None keeps its own. The least length shrinks or
        grows with it.
      num_items: None keeps its own. The categories shrink or grow in number with it, not in size,
        so that a user's tastes spread over as many items as before.

    Raises:
      WorldError: No such world can be.
    """
    if num_users is not None:
        config = dataclasses.replace(config, num_users=num_users)
    if mean_length is not None:
        least = round(config.min_length * mean_length / config.mean_length)
        config = dataclasses.replace(
            config, mean_length=mean_length, min_length=max(least, config.oracle_events + 1)
        )
    if num_items is not None:
        categories = round(config.num_categories * num_items / config.num_items)
        config = dataclasses.replace(config, num_items=num_items, num_categories=max(categories, 1))
    return config
