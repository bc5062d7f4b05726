"""`WorldConfig`, the parameters of a generated world, and the presets."""

import dataclasses
from typing import Annotated

from linseqrec.config_fields import Config, Count, NotNegative, Probability, at_least, require
from linseqrec.errors import UserError


class WorldError(UserError, ValueError):
    """A world cannot be generated or recreated, or cannot answer this question."""


@dataclasses.dataclass(frozen=True)
class WorldConfig(Config):
    """The parameters of the equations in `linseqrec.data.worlds`.

    A symbol in brackets is the parameter's symbol in the equations. Times are in seconds.

    Attributes:
      name: The name of the world in the card.
      num_users: [U] number of users.
      num_items: [N] number of items.
      num_categories: [C] number of categories, at most N.
      mean_length: Mean number of events in a history.
      length_spread: Standard deviation of the logarithm of a history's length. 0: equal lengths.
      min_length: Smallest number of events in a history; the generator lengthens shorter ones.
      zipf_exponent: [s] the popularity of an item is its rank to the power -s.
      taste_concentration: [kappa] concentration of the Dirichlet distribution of tastes, at least
        0.05. 1 gives a user about one favourite category, C gives broad tastes.
      session_length: [1 / eta] mean number of events in a session, at least 1.
      session_gap: Median gap between two events of a session.
      session_timeout: [G_1] the gaps in a session are shorter than this, all others are not.
      return_gap: Median of the gap between two sessions minus `session_timeout`.
      gap_spread: Standard deviation of the logarithm of both gaps above.
      absence_rate: [alpha] probability that a new session follows a long absence.
      absence_after: [G_2] absences last at least this long, and no other gap does.
      absence_mean: [tau] mean length of an absence minus `absence_after`.
      drift_time: [h] time beyond `absence_after` after which 1/e of the old taste remains.
      burst_start: [b_+] probability that a burst starts, at an event outside a burst.
      burst_end: [b_-] probability that a burst ends, at an event of a burst. A new session also
        ends it.
      succession: [rho] probability that an ordinary event within a session is a successor of the
        last item.
      num_successors: [S] number of successors of an item.
      successor_within: Probability that a successor is of the item's own category.
      num_motifs: [M] number of habits of a user.
      motif_length: [L] number of items in a habit, at least 2.
      motif_start: [mu] probability that an event starts a habit, if no habit is current.
      motif_interrupt: [delta] probability that an ordinary item interrupts the current habit, which
        then continues.
      oracle_events: Number of last events per user for which the oracle knows the state, below
        `min_length`. Leave-one-out validation and test need 2.
    """

    name: str = "custom"
    num_users: Count = 2_000
    num_items: Count = 1_000
    num_categories: Count = 125
    mean_length: float = 80.0
    length_spread: NotNegative = 0.5
    min_length: int = 10
    zipf_exponent: NotNegative = 0.6
    # A taste is a vector of gamma draws divided by its sum. Below 0.05 all may underflow to 0.
    taste_concentration: Annotated[float, at_least(0.05)] = 4.0
    session_length: Annotated[float, at_least(1)] = 10.0
    session_gap: Annotated[float, at_least(1)] = 60.0
    session_timeout: Count = 1_800
    return_gap: Annotated[float, at_least(1)] = 86_400.0
    gap_spread: NotNegative = 1.0
    absence_rate: Probability = 0.02
    absence_after: int = 30 * 86_400
    absence_mean: Annotated[float, at_least(1)] = 60 * 86_400.0
    drift_time: Annotated[float, at_least(1)] = 60 * 86_400.0
    burst_start: Probability = 0.02
    burst_end: Probability = 0.2
    succession: Probability = 0.15
    num_successors: Count = 3
    successor_within: Probability = 0.8
    num_motifs: Count = 3
    motif_length: Annotated[int, at_least(2)] = 4
    motif_start: Probability = 0.05
    motif_interrupt: Probability = 0.1
    oracle_events: Count = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        items, shortest, timeout = self.num_items, self.min_length, self.session_timeout
        for field, holds, want in (
            ("num_categories", self.num_categories <= items, f"at most num_items={items}"),
            ("oracle_events", self.oracle_events < shortest, f"below min_length={shortest}"),
            ("mean_length", self.mean_length >= shortest, f"at least min_length={shortest}"),
            ("absence_after", self.absence_after > timeout, f"above session_timeout={timeout}"),
        ):
            require(holds, field, getattr(self, field), want)


_QUICK = WorldConfig(name="quick")
_PRESETS = (
    _QUICK,
    # For SinkRec's sink. Over half of the events belong to habits, and other events interrupt them.
    # The recurring items fill a compressed state, while the events that show tastes are rare.
    dataclasses.replace(
        _QUICK,
        name="repetition",
        mean_length=200.0,
        motif_length=5,
        motif_start=0.35,
        motif_interrupt=0.25,
    ),
    # For HyTRec's decay over elapsed time. About one event in 33 follows an absence, which replaces
    # most of a taste: only the gap tells how much of the past still counts.
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
    # For long histories. Tastes are broad, and most of the 50 habits occur once in 1,000 events or
    # less: a model that reads only the last few hundred events does not see them.
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
      WorldError: The preset is unknown; names the known ones.
    """
    presets = {config.name: config for config in _PRESETS}
    if preset not in presets:
        raise WorldError(f"world is {preset!r}: it must be one of {', '.join(presets)}")
    return presets[preset]


def resized(
    config: WorldConfig,
    num_users: int | None = None,
    mean_length: float | None = None,
    num_items: int | None = None,
) -> WorldConfig:
    """The configuration of a world with another size and otherwise equal parameters.

    Args:
      config: The configuration of the world.
      num_users: Number of users. None: unchanged.
      mean_length: Mean number of events in a history. None: unchanged. `min_length` changes in
        proportion.
      num_items: Number of items. None: unchanged. The number of categories changes in proportion.
        Their size does not, so that a user's taste covers as many items as before.

    Raises:
      ConfigError: The size is out of range.
    """
    if num_users is not None:
        config = dataclasses.replace(config, num_users=num_users)
    if mean_length is not None:
        min_length = round(config.min_length * mean_length / config.mean_length)
        config = dataclasses.replace(
            config, mean_length=mean_length, min_length=max(min_length, config.oracle_events + 1)
        )
    if num_items is not None:
        categories = round(config.num_categories * num_items / config.num_items)
        config = dataclasses.replace(config, num_items=num_items, num_categories=max(categories, 1))
    return config
