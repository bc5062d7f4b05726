"""Whether one system is better than another: the bootstrap over users, and the error over seeds."""

import dataclasses
import math

import numpy as np
from scipy.stats import t as student_t

# Counts drawn at a time, 128 MB of them.
_BLOCK = 1 << 24
# Student's t below which two standard errors of a normal distribution lie.
_TWO_ERRORS = 0.97725


@dataclasses.dataclass(frozen=True)
class PairedDifference:
    """A difference of means with its confidence interval.

    Attributes:
      difference: Mean of the first minus mean of the second.
      low, high: The bounds of the interval.
      confidence: Its nominal coverage.
      users: The number of users that were resampled.
      p_value: Two-sided p-value of "no difference": twice the share of resampled differences on the
        other side of zero, at most 1. With n resamplings it is at least 2 / (n + 1). It is 1 for a
        single user, who has no interval either (NaN).
    """

    difference: float
    low: float
    high: float
    confidence: float
    users: int
    p_value: float


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

    Users are drawn with replacement, with all their targets, because the targets of one user are
    not independent. The metric stays a mean over targets. The interval includes the sampling of
    users only, not the variation between seeds: pass means over several seeds for each target.

    Args:
      first: [M], a metric of the first system for each target (`metrics.per_target`).
      second: [M], the metric of the second system, in the same order.
      users: [M], the user of each target; None if every target has another user.
      samples: The number of resamplings.
      confidence: Nominal coverage of the interval, in (0, 1).
      seed: The seed of the resampling.

    Raises:
      ValueError: If the lengths differ, there are no targets, or the confidence is outside (0, 1).

    Source: Efron & Tibshirani, 1993, chapter 13 (the percentile interval); the p-value inverts it,
      with one resampling added to either side (Davison & Hinkley, 1997, section 4.4).
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
    # Users with equal sums and counts are interchangeable, so one draw gives the number of users of
    # each kind. A ranking metric takes few values: there are far fewer kinds than users, unless
    # seeds were averaged.
    kinds, sizes = np.unique(per_user, axis=0, return_counts=True)
    generator = np.random.default_rng(seed)
    shares, block = sizes / len(per_user), max(1, _BLOCK // len(kinds))
    means = np.empty(samples)
    for start in range(0, samples, block):
        size = min(block, samples - start)
        totals = generator.multinomial(len(per_user), shares, size=size) @ kinds
        means[start : start + size] = totals[:, 0] / totals[:, 1]
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(means, [tail, 100 - tail])
    beyond = int(min(np.count_nonzero(means <= 0), np.count_nonzero(means >= 0)))
    if len(per_user) == 1:
        low, high, beyond = np.nan, np.nan, samples
    return PairedDifference(
        difference=float(differences.mean()),
        low=float(low),
        high=float(high),
        confidence=confidence,
        users=len(per_user),
        p_value=min(1.0, 2 * (beyond + 1) / (samples + 1)),
    )


def over_seeds(*sides: np.ndarray) -> tuple[float | None, float]:
    """How far a difference of two systems' means may be due to the seeds of their training.

    Args:
      *sides: Each system's mean by seed; empty for a system without seeds, such as a baseline.

    Returns:
      The standard error, √(s₁² / n₁ + s₂² / n₂) of the standard deviations s over n seeds; None if
      a system has a single seed. And what the difference must exceed: Student's t times the error
      of the systems with several seeds (at many seeds, two errors); 0 if there is none.

    Source: Welch, 1947, "The generalization of 'Student's' problem when several different
      population variances are involved" (the degrees of freedom).
    """
    with_seeds = [means for means in sides if len(means)]
    several = [means for means in with_seeds if len(means) > 1]
    variances = np.array([means.var(ddof=1) / len(means) for means in several])
    error, margin = math.sqrt(variances.sum()), 0.0
    if error > 0:
        freedom = variances.sum() ** 2 / sum(
            variance**2 / (len(means) - 1)
            for variance, means in zip(variances, several, strict=True)
        )
        margin = error * float(student_t.ppf(_TWO_ERRORS, freedom))
    return error if with_seeds and len(several) == len(with_seeds) else None, margin
