"""`World`, a generated data set with an oracle that knows the true next-item distribution."""

import dataclasses
from typing import Literal

import numpy as np

from linseqrec.data.dataset import Dataset
from linseqrec.data.worlds.catalogue import Catalogue
from linseqrec.data.worlds.config import WorldConfig, WorldError
from linseqrec.data.worlds.generation import Latents, draw_histories


@dataclasses.dataclass(frozen=True)
class World:
    """A generated data set and its oracle.

    Attributes:
      config: The parameters of the world.
      dataset: The events. The card says that they are synthetic, and holds `config` and `seed`.
      sources: uint8 [E], the origin of each event: BROWSE (taste), BURST, SUCCESSION or HABIT.
      catalogue: Categories, popularity and successors of the items.
      latents: The habits of the users, and their states before each of their last events.
    """

    config: WorldConfig
    dataset: Dataset
    sources: np.ndarray
    catalogue: Catalogue
    latents: Latents

    def oracle_scores(
        self,
        users: np.ndarray,
        positions: np.ndarray,
        *,
        request_time: Literal["hidden", "known"] = "hidden",
    ) -> np.ndarray:
        """The true probability of every item at each event, from the user's earlier events.

        On average, no ranking has a better HR or NDCG than the ranking by these probabilities.

        Args:
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
        slots = self._slots(users, positions)
        config, mass = self.config, self.catalogue.category_mass
        rows = np.arange(len(users))
        taste = self.latents.taste[users, slots]
        burst = self.latents.burst[users, slots]
        place = self.latents.place[users, slots]
        new, old_share = self._session_starts(positions, request_time)
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

        share = self.catalogue.popularity[1:] / mass[self.catalogue.category[1:]]
        scores = np.full((len(users), config.num_items + 1), -np.inf)
        scores[:, 1:] = categories[:, self.catalogue.category[1:]] * share
        last = self.dataset.items[positions - 1]
        for rank, weight in enumerate(self.catalogue.successor_weights):
            scores[rows, self.catalogue.successors[last, rank]] += successor * weight
        motifs = self.latents.motifs[users]
        for habit, weight in enumerate(self.catalogue.motif_weights):
            scores[rows, motifs[:, habit, 0]] += starts_habit * weight
        scores[rows, motifs[rows, self.latents.habit[users, slots], place]] += continues_habit
        return scores.astype(np.float32)

    def _slots(self, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """int64 [M], the number of later events of the same user; 0 for his last event."""
        offsets, num_known = self.dataset.offsets, self.config.oracle_events
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
        self, positions: np.ndarray, request_time: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """The probability that each event begins a session, and the mean share of the old taste.

        Returns:
          float64 [M], the probability.
          float64 [M], the expected share of the old taste in the taste at a new session. The mean
          of the other share is the category mass.
        """
        config = self.config
        if request_time == "known":
            times = self.dataset.timestamps
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


def generate(config: WorldConfig, seed: int) -> World:
    """A random world; the same configuration and seed give the same bytes.

    Args:
      config: The parameters of the world; `world_config` has the presets.
      seed: At least 0.

    Returns:
      The world, in memory.

    Raises:
      WorldError: The seed is negative, or the timestamps do not fit int32 seconds.
    """
    if seed < 0:
        raise WorldError(f"seed is {seed}: it must be at least 0")
    histories = draw_histories(config, seed)
    dataset = Dataset.from_arrays(
        histories.items,
        histories.timestamps,
        histories.offsets,
        num_items=config.num_items,
        source=f"generated world {config.name!r}, seed {seed}: synthetic, nobody's behaviour",
    )
    card_entry = {"synthetic": True, "seed": seed, "config": dataclasses.asdict(config)}
    dataset = dataclasses.replace(dataset, card={**dataset.card, "world": card_entry})
    return World(config, dataset, histories.sources, histories.catalogue, histories.latents)
