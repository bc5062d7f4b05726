"""The items of a generated world: categories, popularity, and what follows on what."""

import dataclasses

import numpy as np

from linseqrec.data.worlds.config import WorldConfig


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """What is the same for every user; rows 0 stand for padding and are never drawn.

    Attributes:
      popularity: [w] float64 [N + 1], each item's share of the catalogue's popularity; w_0 = 0.
      category: [c] int64 [N + 1], from 0; -1 for padding.
      category_mass: [W] float64 [C], the popularity of each category; sums to 1.
      successors: int64 [N + 1, S], what may follow on each item, repetitions allowed.
      successor_weights: [v] float64 [S]; sums to 1.
      motif_weights: [nu] float64 [M], how often a user turns to each habit; sums to 1.
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
        """Items of the given categories by popularity, from uniform numbers in [0, 1), [M]."""
        first, end = self._first[categories], self._first[categories + 1]
        low = self._cumulative[first]
        mark = low + uniform * (self._cumulative[end] - low)
        place = np.searchsorted(self._cumulative, mark, side="right") - 1
        # Rounding may carry a mark over its category's edge.
        return self._by_category[np.clip(place, first, end - 1)]


def make_catalogue(config: WorldConfig, rng: np.random.Generator) -> Catalogue:
    """Draws the catalogue: ranks and categories are independent of the ids."""
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
    own = rng.random((items, config.num_successors)) < config.successor_within
    any_category = rng.choice(categories, size=own.shape, p=catalogue.category_mass)
    into = np.where(own, category[1:, None], any_category)
    catalogue.successors[1:] = catalogue.draw(into, rng.random(own.shape))
    return catalogue


def _harmonic(count: int) -> np.ndarray:
    weights = 1.0 / np.arange(1, count + 1)
    return weights / weights.sum()
