"""Generates worlds: a catalogue, then histories, one event at a time for all users together."""

import dataclasses

import numpy as np

from linseqrec.data.dataset import Dataset
from linseqrec.data.worlds.config import WorldConfig, WorldError

# Seconds since 1970. The first events of the users fall within one year from here.
ORIGIN = 1_000_000_000
YEAR = 365 * 86_400  # seconds

# The origin of an event: the user's taste, a burst, a successor of the last item, or a habit.
BROWSE, BURST, SUCCESSION, HABIT = range(4)


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """The properties of the items, the same for all users. Row 0 of an array is padding.

    Attributes:
      popularity: w, float64 [N + 1], the popularity of each item; sums to 1. w_0 = 0.
      category: c, int64 [N + 1], from 0; -1 for padding.
      category_mass: W, float64 [C], the popularity of each category; sums to 1.
      successors: int64 [N + 1, S], the successors of each item, with repetitions.
      successor_weights: v, float64 [S], the probability of each successor; sums to 1.
      motif_weights: nu, float64 [M], the probability of each habit of a user; sums to 1.
    """

    popularity: np.ndarray
    category: np.ndarray
    category_mass: np.ndarray
    successors: np.ndarray
    successor_weights: np.ndarray
    motif_weights: np.ndarray
    _by_category: np.ndarray = dataclasses.field(repr=False)
    _cumulative: np.ndarray = dataclasses.field(repr=False)
    _first: np.ndarray = dataclasses.field(repr=False)

    def draw(self, categories: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """One item of each category, drawn by popularity.

        Args:
          categories: int [...], the categories.
          uniform: float64 [...], uniform random numbers in [0, 1).

        Returns:
          int64 [...], the items.
        """
        first, end = self._first[categories], self._first[categories + 1]
        low = self._cumulative[first]
        cumulative = low + uniform * (self._cumulative[end] - low)
        index = np.searchsorted(self._cumulative, cumulative, side="right") - 1
        # Rounding may move `cumulative` to the next category.
        return self._by_category[np.clip(index, first, end - 1)]


@dataclasses.dataclass(frozen=True)
class Latents:
    """The states of the users before their last events, and their habits.

    A state and the last item determine the distribution of the next item. Entry [u, i] of a state
    is the state of user u before event i from the end of his history; i = 0 is the last event, and
    k = `oracle_events`.

    Attributes:
      taste: pi, float64 [U, k, C], probabilities of the categories.
      burst: b, int64 [U, k], the category of the current burst; -1 without a burst.
      habit: m, int64 [U, k], the habit that the user started last.
      place: p, int64 [U, k], the number of items so far of the current habit; 0 without one.
      motifs: q, int64 [U, M, L], the items of each habit.
    """

    taste: np.ndarray
    burst: np.ndarray
    habit: np.ndarray
    place: np.ndarray
    motifs: np.ndarray


@dataclasses.dataclass(frozen=True)
class World:
    """A generated data set, with the hidden variables behind its events.

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
    catalogue_seed, user_seed, event_seed = np.random.SeedSequence(seed).spawn(3)
    catalogue = _make_catalogue(config, np.random.default_rng(catalogue_seed))
    rng = np.random.default_rng(user_seed)
    lengths = _draw_lengths(config, rng)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    # Longest histories first, so that at every step the unfinished histories are a prefix.
    order = np.argsort(-lengths, kind="stable")
    users = _Users(config, catalogue, lengths[order], rng)

    items = np.empty(offsets[-1], np.int32)
    timestamps = np.empty(offsets[-1], np.int64)
    sources = np.empty(offsets[-1], np.uint8)
    starts = offsets[:-1][order]
    rng = np.random.default_rng(event_seed)
    for step in range(int(lengths.max())):
        running = int(np.searchsorted(-users.lengths, -step, side="left"))
        users.save_states(step, running)
        users.advance(step, running, rng)
        events = starts[:running] + step
        items[events] = users.last_item[:running]
        timestamps[events] = users.time[:running]
        sources[events] = users.source[:running]

    span = int(timestamps.max() - timestamps.min())
    if span > np.iinfo(np.int32).max:
        raise WorldError(
            f"the world {config.name!r} spans {span / YEAR:.0f} years, but int32 seconds hold 68: "
            "reduce mean_length, return_gap, absence_rate or absence_mean"
        )
    row_of_user = np.argsort(order)
    latents = Latents(*(field[row_of_user] for field in (*users.saved_states, users.motifs)))
    dataset = Dataset.from_arrays(
        items,
        timestamps,
        offsets,
        num_items=config.num_items,
        source=f"generated world {config.name!r}, seed {seed}: synthetic, nobody's behaviour",
    )
    card_entry = {"synthetic": True, "seed": seed, "config": dataclasses.asdict(config)}
    dataset = dataclasses.replace(dataset, card={**dataset.card, "world": card_entry})
    return World(config, dataset, sources, catalogue, latents)


def _make_catalogue(config: WorldConfig, rng: np.random.Generator) -> Catalogue:
    """A random catalogue. Popularity and category do not depend on the item's id."""
    items, categories = config.num_items, config.num_categories
    popularity = np.zeros(items + 1)
    popularity[1:] = rng.permutation(np.arange(1, items + 1.0) ** -config.zipf_exponent)
    popularity /= popularity.sum()
    category = np.full(items + 1, -1, np.int64)
    category[1:] = rng.permutation(np.arange(items) % categories)

    by_category = 1 + np.argsort(category[1:], kind="stable")
    cumulative = np.concatenate([[0.0], np.cumsum(popularity[by_category])])
    first = np.searchsorted(category[by_category], np.arange(categories + 1))
    catalogue = Catalogue(
        popularity=popularity,
        category=category,
        category_mass=np.bincount(category[1:], popularity[1:], minlength=categories),
        successors=np.zeros((items + 1, config.num_successors), np.int64),
        successor_weights=_harmonic(config.num_successors),
        motif_weights=_harmonic(config.num_motifs),
        _by_category=by_category,
        _cumulative=cumulative,
        _first=first,
    )
    within = rng.random((items, config.num_successors)) < config.successor_within
    any_category = rng.choice(categories, size=within.shape, p=catalogue.category_mass)
    successor_category = np.where(within, category[1:, None], any_category)
    catalogue.successors[1:] = catalogue.draw(successor_category, rng.random(within.shape))
    return catalogue


def _harmonic(count: int) -> np.ndarray:
    """Weights proportional to 1, 1/2, 1/3, ..., with sum 1."""
    weights = 1.0 / np.arange(1, count + 1)
    return weights / weights.sum()


def _draw_lengths(config: WorldConfig, rng: np.random.Generator) -> np.ndarray:
    spread = config.length_spread
    normal = rng.standard_normal(config.num_users)
    lengths = config.mean_length * np.exp(spread * normal - spread**2 / 2)
    return np.maximum(np.rint(lengths).astype(np.int64), config.min_length)


class _Users:
    """The current state of every user, longest history first.

    At every step, the first `running` users have unfinished histories.

    Attributes:
      lengths: int64 [U], the length of each history.
      taste: float64 [U, C]; `cumulative_taste` is its cumulative sum over the categories.
      motifs: int64 [U, M, L], the items of each habit.
      time, last_item, source: [U], the last event of each user.
      burst, habit, place: int64 [U], as in `Latents`.
      saved_states: The taste, burst, habit and place of `Latents`, filled by `save_states`.
    """

    def __init__(
        self,
        config: WorldConfig,
        catalogue: Catalogue,
        lengths: np.ndarray,
        rng: np.random.Generator,
    ) -> None:
        self.config, self.catalogue, self.lengths = config, catalogue, lengths
        users, states_shape = len(lengths), (len(lengths), config.oracle_events)
        self.taste = self._draw_tastes(users, rng)
        self.cumulative_taste = np.cumsum(self.taste, axis=1)
        self.motifs = np.empty((users, config.num_motifs, config.motif_length), np.int64)
        for motif_and_place in np.ndindex(self.motifs.shape[1:]):
            categories = _choose(self.cumulative_taste, np.arange(users), rng.random(users))
            self.motifs[:, *motif_and_place] = catalogue.draw(categories, rng.random(users))
        self.time = ORIGIN + rng.integers(0, YEAR, users)
        self.last_item = np.zeros(users, np.int64)
        self.burst = np.full(users, -1)
        self.habit = np.zeros(users, np.int64)
        self.place = np.zeros(users, np.int64)
        self.source = np.zeros(users, np.uint8)
        self.saved_states = (
            np.empty((*states_shape, config.num_categories)),
            *(np.empty(states_shape, np.int64) for _ in range(3)),
        )
        self.cumulative_mass = np.cumsum(catalogue.category_mass)
        self.cumulative_successors = np.cumsum(catalogue.successor_weights)
        self.cumulative_motifs = np.cumsum(catalogue.motif_weights)

    def _draw_tastes(self, count: int, rng: np.random.Generator) -> np.ndarray:
        # Gamma draws divided by their sum follow a Dirichlet distribution.
        concentration = self.config.taste_concentration * self.catalogue.category_mass
        draws = rng.standard_gamma(concentration, (count, len(concentration)))
        return draws / draws.sum(axis=1, keepdims=True)

    def save_states(self, step: int, running: int) -> None:
        """Saves the states of the users for whom this step is one of the last `oracle_events`."""
        first = int(
            np.searchsorted(-self.lengths, -(step + self.config.oracle_events), side="left")
        )
        rows = np.arange(first, running)
        slots = self.lengths[rows] - 1 - step
        for saved, state in zip(
            self.saved_states, (self.taste, self.burst, self.habit, self.place), strict=True
        ):
            saved[rows, slots] = state[rows]

    def advance(self, step: int, running: int, rng: np.random.Generator) -> None:
        """Draws the next event of the first `running` users by the equations of the package."""
        config, catalogue = self.config, self.catalogue
        # One uniform number per user for each decision of the step.
        (
            session_draw,
            burst_end_draw,
            burst_start_draw,
            habit_draw,
            choice_draw,
            item_draw,
        ) = rng.random((6, running))

        # The gap.
        if step == 0:
            new = np.ones(running, bool)
        else:
            new = self._pass_time(session_draw, running, rng)

        # The burst.
        burst = self.burst[:running]
        burst[new | (burst_end_draw < config.burst_end)] = -1
        starting = np.flatnonzero((burst < 0) & (burst_start_draw < config.burst_start))
        burst[starting] = np.searchsorted(
            self.cumulative_mass[:-1], rng.random(len(starting)), "right"
        )

        # The habit.
        place, habit = self.place[:running], self.habit[:running]
        place[new] = 0
        in_habit = place > 0
        from_habit = np.where(
            in_habit, habit_draw >= config.motif_interrupt, habit_draw < config.motif_start
        )
        # Given an ordinary item, `habit_draw` rescaled is uniform again and decides on succession.
        succession_draw = np.where(
            in_habit,
            habit_draw / max(config.motif_interrupt, 1e-300),
            (habit_draw - config.motif_start) / max(1 - config.motif_start, 1e-300),
        )
        is_successor = ~from_habit & ~new & (succession_draw < config.succession)

        # The item. Each of these arrays holds the indices of users.
        habit_users = np.flatnonzero(from_habit)
        habit_starters = np.flatnonzero(from_habit & ~in_habit)
        successor_users = np.flatnonzero(is_successor)
        browsing_users = np.flatnonzero(~from_habit & ~is_successor)

        item, source = self.last_item[:running], self.source[:running]
        habit[habit_starters] = np.searchsorted(
            self.cumulative_motifs[:-1], choice_draw[habit_starters], "right"
        )
        item[habit_users] = self.motifs[habit_users, habit[habit_users], place[habit_users]]
        place[habit_users] = (place[habit_users] + 1) % config.motif_length
        source[habit_users] = HABIT

        rank = np.searchsorted(
            self.cumulative_successors[:-1], choice_draw[successor_users], "right"
        )
        item[successor_users] = catalogue.successors[item[successor_users], rank]
        source[successor_users] = SUCCESSION

        category = burst[browsing_users].copy()
        source[browsing_users] = np.where(category < 0, BROWSE, BURST)
        by_taste = np.flatnonzero(category < 0)
        rows = browsing_users[by_taste]
        category[by_taste] = _choose(self.cumulative_taste, rows, choice_draw[rows])
        item[browsing_users] = catalogue.draw(category, item_draw[browsing_users])

    def _pass_time(
        self, session_draw: np.ndarray, running: int, rng: np.random.Generator
    ) -> np.ndarray:
        """Adds the gap to each user's time, and drifts the tastes of users after an absence.

        Returns:
          bool [running], whether the next event of each user begins a session.
        """
        config = self.config
        new = session_draw * config.session_length < 1
        absent = np.flatnonzero(session_draw * config.session_length < config.absence_rate)
        gap = np.where(new, config.return_gap, config.session_gap)
        gap *= np.exp(config.gap_spread * rng.standard_normal(running))
        gap = np.floor(gap)
        timeout = config.session_timeout
        gap = np.where(
            new,
            np.minimum(timeout + gap, config.absence_after - 1),
            np.minimum(gap, timeout - 1),
        ).astype(np.int64)
        if len(absent):
            beyond = np.floor(rng.standard_exponential(len(absent)) * config.absence_mean)
            gap[absent] = config.absence_after + beyond.astype(np.int64)
            old_share = np.exp(-beyond / config.drift_time)[:, None]
            new_taste = self._draw_tastes(len(absent), rng)
            taste = old_share * self.taste[absent] + (1 - old_share) * new_taste
            self.taste[absent] = taste
            self.cumulative_taste[absent] = np.cumsum(taste, axis=1)
        self.time[:running] += gap
        return new


def _choose(cumulative: np.ndarray, rows: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """For each row, the first index whose cumulative probability is above a uniform number.

    The function bisects, because a comparison with whole rows would copy them, and these copies
    would take most of the time of generating a world.

    Args:
      cumulative: float64 [R, C], cumulative probabilities.
      rows: int [K], the rows to draw from.
      uniform: float64 [K], in [0, 1).

    Returns:
      int64 [K], indices in 0..C - 1.
    """
    width = cumulative.shape[1]
    flat, start = cumulative.ravel(), rows * width
    low = np.zeros(len(rows), np.int64)
    high = np.full(len(rows), width - 1)
    for _ in range((width - 1).bit_length()):
        middle = (low + high) // 2
        above = flat[start + middle] > uniform
        high = np.where(above, middle, high)
        low = np.where(above | (low == high), low, middle + 1)
    return low
