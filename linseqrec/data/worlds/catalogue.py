"""The items of a generated world: their categories, popularity and successors."""

import dataclasses

import numpy as np

from linseqrec.data.worlds.config import WorldConfig


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


def make_catalogue(config: WorldConfig, rng: np.random.Generator) -> Catalogue:
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
