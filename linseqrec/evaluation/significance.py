"""Is a system better than another? The paired bootstrap over users."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class PairedDifference:
    """A difference of means with its confidence interval.

    Attributes:
      difference: Mean of the first minus mean of the second.
      low, high: The bounds of the interval.
      confidence: Its nominal coverage.
      users: Users that were resampled.
    """

    difference: float
    low: float
    high: float
    confidence: float
    users: int

    @property
    def significant(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def paired_bootstrap(
    first: np.ndarray,
    second: np.ndarray,
    users: np.ndarray | None = None,
    *,
    samples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> PairedDifference:
    """The percentile interval of a difference between two systems on the same targets.

    Users are drawn with replacement, all targets of a user together, since a user's targets are no
    independent evidence; the metric stays a mean over targets. It speaks of the users' sampling
    only: train several seeds for the rest, and give their means per target here.

    Args:
      first: [M], a metric of the first system target by target (`metrics.per_target`).
      second: [M], the same of the second system, in the same order.
      users: [M], whose target each is; None where every target is another user's.
      samples: Resamplings.
      confidence: Nominal coverage of the interval, in (0, 1).
      seed: Of the resampling.

    Raises:
      ValueError: Arrays of different lengths, no targets, or a confidence outside (0, 1).

    Source: Efron & Tibshirani, 1993, chapter 13 (the percentile interval).
    """
    differences = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    users = np.arange(len(differences)) if users is None else np.asarray(users)
    if len(first) != len(second) or users.shape != differences.shape or not len(differences):
        raise ValueError(
            f"the systems must share their targets, at least one: got {len(first)} and "
            f"{len(second)} values for {len(users)} users' targets"
        )
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}")
    _, user_of = np.unique(users, return_inverse=True)
    per_user = np.stack([np.bincount(user_of, differences), np.bincount(user_of)], axis=1)
    # Users with the same numbers are interchangeable, so it is enough to draw how many of each
    # kind there are. A ranking metric takes few values: far fewer draws than users.
    kinds, sizes = np.unique(per_user, axis=0, return_counts=True)
    generator = np.random.default_rng(seed)
    draws = generator.multinomial(len(per_user), sizes / len(per_user), size=samples)
    totals = draws @ kinds
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(totals[:, 0] / totals[:, 1], [tail, 100 - tail])
    return PairedDifference(
        float(differences.mean()), float(low), float(high), confidence, len(per_user)
    )
