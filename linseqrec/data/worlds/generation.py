"""Draws a world's histories, one time step of all users at once."""

import dataclasses
from typing import NamedTuple

import numpy as np

from linseqrec.data.worlds.catalogue import Catalogue, make_catalogue
from linseqrec.data.worlds.config import WorldConfig, WorldError

ORIGIN = 1_000_000_000  # seconds since 1970; users set out within a year from here
YEAR = 365 * 86_400

BROWSE, BURST, SUCCESSION, HABIT = range(4)


@dataclasses.dataclass(frozen=True)
class Latents:
    """What a user's next events depend on, besides the last item.

    The first axis is users; kept states have a second one, the event they precede, counted from a
    history's end (0 is the last event, k = `oracle_events`).

    Attributes:
      taste: [pi] float64 [U, k, C], probabilities of categories.
      burst: [b] int64 [U, k], the category of the burst under way, or -1.
      habit: [m] int64 [U, k], the habit that was begun last.
      place: [p] int64 [U, k], its items that have been, or 0 where none is under way.
      motifs: [q] int64 [U, M, L], the items of each habit.
    """

    taste: np.ndarray
    burst: np.ndarray
    habit: np.ndarray
    place: np.ndarray
    motifs: np.ndarray


class Histories(NamedTuple):
    """Everything drawn: the events, what each came from, and the states kept for the oracle."""

    items: np.ndarray
    timestamps: np.ndarray
    offsets: np.ndarray
    sources: np.ndarray
    catalogue: Catalogue
    latents: Latents


def draw_histories(config: WorldConfig, seed: int) -> Histories:
    """Draws all that a world holds.

    Args:
      config: Its numbers.
      seed: At least 0; the same seed and configuration give the same bytes.

    Returns:
      items int32 [E], timestamps int64 [E] (seconds), offsets int64 [U + 1], sources uint8 [E]
      (BROWSE, BURST, SUCCESSION or HABIT), the catalogue and the kept latents.

    Raises:
      WorldError: The timestamps span more seconds than an int32 holds.
    """
    catalogue_seed, user_seed, event_seed = np.random.SeedSequence(seed).spawn(3)
    catalogue = make_catalogue(config, np.random.default_rng(catalogue_seed))
    rng = np.random.default_rng(user_seed)
    lengths = _draw_lengths(config, rng)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    # Longest histories first, so that those that still run are a prefix at every step.
    order = np.argsort(-lengths, kind="stable")
    users = _Users(config, catalogue, lengths[order], rng)

    items = np.empty(offsets[-1], np.int32)
    timestamps = np.empty(offsets[-1], np.int64)
    sources = np.empty(offsets[-1], np.uint8)
    starts = offsets[:-1][order]
    rng = np.random.default_rng(event_seed)
    for step in range(int(lengths.max())):
        running = int(np.searchsorted(-users.lengths, -step, side="left"))
        users.keep_states(step, running)
        users.advance(step, running, rng)
        at = starts[:running] + step
        items[at] = users.last[:running]
        timestamps[at] = users.now[:running]
        sources[at] = users.source[:running]

    span = int(timestamps.max() - timestamps.min())
    if span > np.iinfo(np.int32).max:
        raise WorldError(
            f"the world {config.name!r} spans {span / YEAR:.0f} years, over the 68 that int32 "
            f"seconds hold: shorten mean_length, return_gap, absence_rate or absence_mean"
        )
    back = np.argsort(order)
    latents = Latents(*(field[back] for field in (*users.kept, users.motifs)))
    return Histories(items, timestamps, offsets, sources, catalogue, latents)


def _draw_lengths(config: WorldConfig, rng: np.random.Generator) -> np.ndarray:
    spread = config.length_spread
    normal = rng.standard_normal(config.num_users)
    lengths = config.mean_length * np.exp(spread * normal - spread**2 / 2)
    return np.maximum(np.rint(lengths).astype(np.int64), config.min_length)


class _Users:
    """The state of every user, longest history first; `advance` moves the first `running` on."""

    def __init__(
        self,
        config: WorldConfig,
        catalogue: Catalogue,
        lengths: np.ndarray,
        rng: np.random.Generator,
    ) -> None:
        self.config, self.catalogue, self.lengths = config, catalogue, lengths
        users, kept = len(lengths), (len(lengths), config.oracle_events)
        self.taste = self._draw_tastes(users, rng)
        self.cumulative = np.cumsum(self.taste, axis=1)
        self.motifs = np.empty((users, config.num_motifs, config.motif_length), np.int64)
        for place in np.ndindex(self.motifs.shape[1:]):
            categories = _choose(self.cumulative, np.arange(users), rng.random(users))
            self.motifs[:, *place] = catalogue.draw(categories, rng.random(users))
        self.now = ORIGIN + rng.integers(0, YEAR, users)
        self.last = np.zeros(users, np.int64)
        self.burst = np.full(users, -1)
        self.habit = np.zeros(users, np.int64)
        self.place = np.zeros(users, np.int64)
        self.source = np.zeros(users, np.uint8)
        self.kept = (
            np.empty((*kept, config.num_categories)),
            *(np.empty(kept, np.int64) for _ in range(3)),
        )
        self.cumulative_mass = np.cumsum(catalogue.category_mass)
        self.cumulative_successors = np.cumsum(catalogue.successor_weights)
        self.cumulative_motifs = np.cumsum(catalogue.motif_weights)

    def _draw_tastes(self, count: int, rng: np.random.Generator) -> np.ndarray:
        # Dirichlet rows.
        concentration = self.config.taste_concentration * self.catalogue.category_mass
        draws = rng.standard_gamma(concentration, (count, len(concentration)))
        return draws / draws.sum(axis=1, keepdims=True)

    def keep_states(self, step: int, running: int) -> None:
        """Keeps the states before this step of those for whom it is one of the last events."""
        first = int(
            np.searchsorted(-self.lengths, -(step + self.config.oracle_events), side="left")
        )
        rows = np.arange(first, running)
        slots = self.lengths[rows] - 1 - step
        for kept, state in zip(
            self.kept, (self.taste, self.burst, self.habit, self.place), strict=True
        ):
            kept[rows, slots] = state[rows]

    def advance(self, step: int, running: int, rng: np.random.Generator) -> None:
        """Draws the next event of the first `running` users, as the package's equations say."""
        config, catalogue = self.config, self.catalogue
        kind, end, start, branch, which, what = rng.random((6, running))

        # The gap.
        if step == 0:
            new = np.ones(running, bool)
        else:
            new = self._pass_time(kind, running, rng)

        # The burst.
        burst = self.burst[:running]
        burst[new | (end < config.burst_end)] = -1
        starting = np.flatnonzero((burst < 0) & (start < config.burst_start))
        burst[starting] = np.searchsorted(
            self.cumulative_mass[:-1], rng.random(len(starting)), "right"
        )

        # The habit.
        place, habit = self.place[:running], self.habit[:running]
        place[new] = 0
        begun = place > 0
        goes_on = np.where(begun, branch >= config.motif_interrupt, branch < config.motif_start)
        # What is left of `branch` once the habit has had its share, uniform again.
        left = np.where(
            begun,
            branch / max(config.motif_interrupt, 1e-300),
            (branch - config.motif_start) / max(1 - config.motif_start, 1e-300),
        )
        ordinary = ~goes_on
        follows = ordinary & ~new & (left < config.succession)
        browses = np.flatnonzero(ordinary & ~follows)
        follows = np.flatnonzero(follows)
        sets_out = np.flatnonzero(goes_on & ~begun)
        goes_on = np.flatnonzero(goes_on)

        item, source = self.last[:running], self.source[:running]
        habit[sets_out] = np.searchsorted(self.cumulative_motifs[:-1], which[sets_out], "right")
        item[goes_on] = self.motifs[goes_on, habit[goes_on], place[goes_on]]
        place[goes_on] = (place[goes_on] + 1) % config.motif_length
        source[goes_on] = HABIT

        chosen = np.searchsorted(self.cumulative_successors[:-1], which[follows], "right")
        item[follows] = catalogue.successors[item[follows], chosen]
        source[follows] = SUCCESSION

        category = burst[browses].copy()
        source[browses] = np.where(category < 0, BROWSE, BURST)
        by_taste = np.flatnonzero(category < 0)
        rows = browses[by_taste]
        category[by_taste] = _choose(self.cumulative, rows, which[rows])
        item[browses] = catalogue.draw(category, what[browses])

    def _pass_time(self, kind: np.ndarray, running: int, rng: np.random.Generator) -> np.ndarray:
        """Adds the gaps, and lets tastes drift over the absences; says who begins a session."""
        config = self.config
        new = kind * config.session_length < 1
        absent = np.flatnonzero(kind * config.session_length < config.absence_rate)
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
            stays = np.exp(-beyond / config.drift_time)[:, None]
            taste = stays * self.taste[absent] + (1 - stays) * self._draw_tastes(len(absent), rng)
            self.taste[absent] = taste
            self.cumulative[absent] = np.cumsum(taste, axis=1)
        self.now[:running] += gap
        return new


def _choose(cumulative: np.ndarray, rows: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Draws an index from rows of cumulative probabilities [R, C]: the first above `uniform`.

    Bisection: rows are wide, and copying them out to compare would be most of a world's time.
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
