"""Negatives drawn from a proposal distribution over the catalogue.

Axis letters: N items.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Real

# Probabilities are multiples of about 2^-30: the units are counted in int32.
_UNITS = 2**30


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Proposal:
    """A distribution over items that is drawn from exactly as its `log_q` says.

    Attributes:
      cumulative: Units of probability of items 1..n, for n from 0; the last entry is the total.
      log_q: Log-probability of each item; -inf for row 0, which is padding.
    """

    cumulative: Int[Array, "N1"]
    log_q: Float[Array, "N1"]


def uniform_proposal(num_items: int) -> Proposal:
    """Every item alike.

    Raises:
      ValueError: No items, or more than 2^29.
    """
    return popularity_proposal(np.ones(num_items + 1), power=0.0)


def popularity_proposal(counts: Real[np.ndarray, "N1"], power: float = 1.0) -> Proposal:
    """Items in proportion to `max(count, 1) ** power`.

    No item is out of reach: the logQ correction is of no help for one that is never drawn.

    Args:
      counts: How often each item occurs in the training events; entry 0 is ignored.
      power: 1 for the unigram distribution, 0 for the uniform one.

    Returns:
      The proposal; probabilities are rounded to multiples of about 2^-30, `log_q` with them.

    Raises:
      ValueError: No items, more than 2^29, counts that are negative or not finite, or a power that
        makes them so.
    """
    weights = np.asarray(counts, np.float64)[1:]
    if not 1 <= len(weights) <= _UNITS // 2:
        raise ValueError(f"a proposal is over 1 to 2**29 items, not {len(weights)}")
    if not np.all(np.isfinite(weights) & (weights >= 0)):
        raise ValueError("counts must be finite and at least 0")
    with np.errstate(over="ignore"):
        weights = np.maximum(weights, 1) ** power
    if not 0 < weights.sum() < np.inf:
        raise ValueError(f"counts to the power {power} are too large or too small for float64")
    units = np.maximum(np.rint(weights / weights.sum() * _UNITS).astype(np.int64), 1)
    cumulative = np.concatenate([[0], np.cumsum(units)])
    log_q = np.concatenate([[-np.inf], np.log(units) - np.log(cumulative[-1])])
    return Proposal(jnp.asarray(cumulative, jnp.int32), jnp.asarray(log_q, jnp.float32))


def draw_negatives(key: Array, proposal: Proposal, shape: Sequence[int]) -> Int[Array, "..."]:
    """Draws items independently, with replacement.

    Args:
      key: A typed PRNG key.
      proposal: The distribution.
      shape: Shape of the result.

    Returns:
      Item ids in 1..N, int32.
    """
    unit = jax.random.randint(key, tuple(shape), 0, proposal.cumulative[-1], jnp.int32)
    return jnp.searchsorted(proposal.cumulative, unit, side="right").astype(jnp.int32)
