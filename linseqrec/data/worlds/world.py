"""`World`: a generated data set together with the truth behind it."""

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np

from linseqrec.data.dataset import Dataset, write_dataset
from linseqrec.data.worlds.catalogue import Catalogue
from linseqrec.data.worlds.config import WorldConfig, WorldError
from linseqrec.data.worlds.generation import Latents, draw_histories


@dataclasses.dataclass(frozen=True)
class World:
    """A generated data set and its oracle.

    Attributes:
      config: The numbers it was made from.
      seed: The seed it was made from.
      dataset: The log, as any other; its card says that it is synthetic and holds both above.
      sources: uint8 [E], what each event came from: BROWSE (taste), BURST, SUCCESSION or HABIT.
      catalogue: Categories, popularity and successors of the items.
      latents: The users' habits, and their states before each of their last events.
    """

    config: WorldConfig
    seed: int
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
        """The true probability of every item at given events, all before each event being known.

        No ranking has a better HR or NDCG, on average, than the one by these.

        Args:
          users: int [M], indices of users.
          positions: int [M], absolute indices of events, each one of its user's last
            `config.oracle_events`.
          request_time: `known` tells the oracle the event's timestamp too (but not the taste that
            an absence has left), to be set beside models that are told.

        Returns:
          float32 [M, N + 1]; column 0, padding, is -inf, and the others of a row sum to 1.

        Raises:
          WorldError: An event is another user's, or not among those whose latents are kept.
        """
        users, positions = np.asarray(users, np.int64), np.asarray(positions, np.int64)
        slots = self._slots(users, positions)
        config, mass = self.config, self.catalogue.category_mass
        rows = np.arange(len(users))
        taste = self.latents.taste[users, slots]
        burst = self.latents.burst[users, slots]
        place = self.latents.place[users, slots]
        new, stays = self._session_starts(positions, request_time)
        within = 1 - new

        # What the event does, over both cases of the gap: [M] each.
        under_way = place > 0
        goes_on = within * np.where(under_way, 1 - config.motif_interrupt, 0)
        begins = (within * np.where(under_way, 0, 1) + new) * config.motif_start
        ordinary = within * np.where(under_way, config.motif_interrupt, 1 - config.motif_start)
        follows = ordinary * config.succession
        browses_within = ordinary - follows
        browses_anew = new * (1 - config.motif_start)

        # The category of an event that browses: [M, C].
        lasting = browses_within * np.where(burst >= 0, 1 - config.burst_end, 0)
        other = browses_within - lasting
        by_taste = (1 - config.burst_start) * (other + browses_anew * stays)
        by_mass = config.burst_start * (other + browses_anew)
        by_mass += (1 - config.burst_start) * browses_anew * (1 - stays)
        categories = by_taste[:, None] * taste + by_mass[:, None] * mass
        categories[rows, burst] += lasting  # zero where there is no burst, -1

        share = self.catalogue.popularity[1:] / mass[self.catalogue.category[1:]]
        scores = np.full((len(users), config.num_items + 1), -np.inf)
        scores[:, 1:] = categories[:, self.catalogue.category[1:]] * share
        last = self.dataset.items[positions - 1]
        for rank, weight in enumerate(self.catalogue.successor_weights):
            scores[rows, self.catalogue.successors[last, rank]] += follows * weight
        motifs = self.latents.motifs[users]
        for habit, weight in enumerate(self.catalogue.motif_weights):
            scores[rows, motifs[:, habit, 0]] += begins * weight
        scores[rows, motifs[rows, self.latents.habit[users, slots], place]] += goes_on
        return scores.astype(np.float32)

    def _slots(self, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """How far each event is from its history's end, 0 being the last."""
        offsets, kept = self.dataset.offsets, self.config.oracle_events
        if len(users) and not (0 <= users.min() and users.max() < len(offsets) - 1):
            raise WorldError(
                f"users are numbered 0 to {len(offsets) - 2}, not {users.min()} to {users.max()}"
            )
        slots = offsets[users + 1] - 1 - positions
        strangers = np.flatnonzero((slots < 0) | (slots >= kept))
        if len(strangers):
            user, position = users[strangers[0]], positions[strangers[0]]
            raise WorldError(
                f"the oracle knows the last {kept} events of user {user}, "
                f"{offsets[user + 1] - kept} to {offsets[user + 1] - 1}, not event {position}; "
                f"raise the world's oracle_events to keep more"
            )
        return slots

    def _session_starts(
        self, positions: np.ndarray, request_time: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """P(a new session) before each event, and the old taste's expected share at one: [M]."""
        config = self.config
        if request_time == "known":
            times = self.dataset.timestamps
            gaps = times[positions] - times[positions - 1]
            beyond = np.maximum(gaps - config.absence_after, 0)
            new = (gaps >= config.session_timeout).astype(np.float64)
            return new, np.exp(-beyond / config.drift_time)
        if request_time != "hidden":
            raise WorldError(f"request_time is 'hidden' or 'known', not {request_time!r}")
        # The mean of exp(-n / h) where n is a whole number of seconds, an exponential cut off.
        per_second = 1 / config.absence_mean
        mean = np.expm1(-per_second) / np.expm1(-per_second - 1 / config.drift_time)
        stays = 1 - config.absence_rate * (1 - mean)
        return np.full(len(positions), 1 / config.session_length), np.full(len(positions), stays)


def generate(config: WorldConfig, seed: int) -> World:
    """Makes a world; the same configuration and seed give the same bytes.

    Args:
      config: Its numbers; `world_config` has the presets.
      seed: At least 0.

    Returns:
      The world, in memory.

    Raises:
      WorldError: The seed is negative, or the timestamps would not fit int32 seconds.
    """
    if seed < 0:
        raise WorldError(f"seed={seed} must be at least 0")
    drawn = draw_histories(config, seed)
    dataset = Dataset.from_arrays(
        drawn.items,
        drawn.timestamps,
        drawn.offsets,
        num_items=config.num_items,
        source=f"generated world {config.name!r}, seed {seed}: synthetic, nobody's behaviour",
    )
    about = {"synthetic": True, "seed": seed, "config": dataclasses.asdict(config)}
    dataset = dataclasses.replace(dataset, card={**dataset.card, "world": about})
    return World(config, seed, dataset, drawn.sources, drawn.catalogue, drawn.latents)


def write_world(folder: str | Path, world: World) -> World:
    """Writes the world's dataset folder; its card is all that `load_world` needs.

    Users' and items' original ids are their numbers, as text.

    Returns:
      The world, its data set opened from `folder`.

    Raises:
      linseqrec.data.dataset.DatasetError: The folder is taken.
    """
    users = [str(user) for user in range(world.config.num_users)]
    items = [str(item) for item in range(1, world.config.num_items + 1)]
    return dataclasses.replace(world, dataset=write_dataset(folder, world.dataset, users, items))


def load_world(folder: str | Path) -> World:
    """Opens a folder that `write_world` wrote, and makes its world again, oracle and all.

    Raises:
      WorldError: The folder's data are no generated world, or this version makes others of them.
      linseqrec.data.dataset.DatasetError: The folder is damaged.
    """
    dataset = Dataset.open(folder)
    if "world" not in dataset.card:
        raise WorldError(f"{folder} holds no generated world: its card has no entry 'world'")
    about = dataset.card["world"]
    world = generate(WorldConfig(**about["config"]), about["seed"])
    for name in ("items", "timestamps", "offsets"):
        if not np.array_equal(getattr(dataset, name), getattr(world.dataset, name)):
            raise WorldError(
                f"{folder}: {name} differ from what its configuration and seed give here, so "
                f"the oracle is lost (another version or NumPy wrote them): write the world again"
            )
    return dataclasses.replace(world, dataset=dataset)
