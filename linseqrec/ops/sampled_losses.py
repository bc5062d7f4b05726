"""Losses over the target and a few drawn items: sampled softmax, BCE, gBCE.

Axis letters: M tokens (any leading axes), D width, N items, S drawn items.

All return the weighted sum of the tokens' losses, as `catalogue_cross_entropy` does, with its
convention for absent tokens (weight 0) and for ids that are no items (an error, NaN under `jit`).
Drawn items come as [S], shared by all tokens (one matmul), or as [*M, S], a token's own (memory for
M * S item vectors). One that equals a token's target is left out for that token.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from linseqrec.ops.loss_inputs import checked


def sampled_softmax(
    hidden: Float[Array, "*M D"],
    table: Float[Array, "N1 D"],
    targets: Int[Array, "*M"],
    weights: Float[Array, "*M"],
    negatives: Int[Array, "..."],
    log_q: Float[Array, "proposed"],
    *,
    num_items: int | None = None,
) -> Float[Array, ""]:
    """Softmax cross-entropy with the partition function estimated from drawn items.

    `Z` is estimated by `exp(o_y) + 1/S * sum over s with item_s != y of exp(o_s - log q_s)`, whose
    mean over draws from `q` is exactly `Z`: the logQ correction. The target, which is present
    whatever is drawn, is not corrected. All items drawn once with a uniform `q` give the full
    softmax.

    Source: importance sampling of the partition function, Bengio and Senecal, IEEE TNN 19(4), 2008.

    Args:
      hidden: Encodings to score with.
      table: Item vectors; row 0 is padding.
      targets: Item ids in 1..N where the weight is not 0.
      weights: Weight of each token.
      negatives: Item ids drawn independently from `q`: [S], or [*M, S].
      log_q: Log-probability of each item under the proposal (`negatives.Proposal.log_q`).
      num_items: N, where the table has more rows; those past item N are padding.

    Returns:
      The weighted sum, a float32 scalar.

    Raises:
      ValueError: Shapes that do not fit; outside of `jit`, ids that are no items.
    """
    own, others, collides = _scores(hidden, table, targets, weights, negatives, num_items)
    count = negatives.shape[-1]
    corrected = others - log_q[negatives] - math.log(count)
    corrected = jnp.where(collides, -jnp.inf, corrected)
    partition = jax.nn.logsumexp(jnp.concatenate([own[..., None], corrected], axis=-1), axis=-1)
    return _weighted_sum(weights, partition - own)


def binary_cross_entropy(
    hidden: Float[Array, "*M D"],
    table: Float[Array, "N1 D"],
    targets: Int[Array, "*M"],
    weights: Float[Array, "*M"],
    negatives: Int[Array, "..."],
    *,
    power: float = 1.0,
    num_items: int | None = None,
) -> Float[Array, ""]:
    """The target against S drawn items, each a yes-or-no question.

    `-(power log sigma(o_y) + sum_s log(1 - sigma(o_s))) / (S + 1)` for each token. SASRec
    (arXiv 1808.09781) sums without power and divisor, and draws one item a token that is not in the
    user's history; both are gSASRec's (arXiv 2308.07192), whose power is `gbce_power`.

    Args:
      hidden: Encodings to score with.
      table: Item vectors; row 0 is padding.
      targets: Item ids in 1..N where the weight is not 0.
      weights: Weight of each token.
      negatives: Item ids: [S], or [*M, S].
      power: Of the target's sigmoid.
      num_items: N, where the table has more rows; those past item N are padding.

    Returns:
      The weighted sum, a float32 scalar.

    Raises:
      ValueError: Shapes that do not fit; outside of `jit`, ids that are no items.
    """
    own, others, collides = _scores(hidden, table, targets, weights, negatives, num_items)
    rejected = jnp.where(collides, 0, jax.nn.softplus(others)).sum(axis=-1)
    losses = (power * jax.nn.softplus(-own) + rejected) / (negatives.shape[-1] + 1)
    return _weighted_sum(weights, losses)


def gbce_power(negatives: int, num_items: int, calibration: float) -> float:
    """The paper's `beta = alpha (t (1 - 1/alpha) + 1/alpha) = 1 - t (1 - alpha)`.

    Args:
      negatives: Items drawn for each target, S.
      num_items: Size of the catalogue N; the sampling rate is `alpha = S / (N - 1)`.
      calibration: The paper's t.

    Returns:
      The power beta, from alpha (t = 1) to 1 (t = 0).

    Raises:
      ValueError: t out of [0, 1], or S out of 1..N - 1.
    """
    if not 0 <= calibration <= 1:
        raise ValueError(f"calibration t is between 0 and 1, not {calibration}")
    if not 1 <= negatives <= num_items - 1:
        raise ValueError(f"{negatives} negatives: gBCE takes 1 to {num_items - 1}, the other items")
    return 1 - calibration * (1 - negatives / (num_items - 1))


def _weighted_sum(weights: Array, losses: Array) -> Float[Array, ""]:
    weights = weights.astype(jnp.float32)
    return jnp.sum(jnp.where(weights == 0, 0, weights * losses))


def _scores(
    hidden: Array,
    table: Array,
    targets: Array,
    weights: Array,
    negatives: Array,
    num_items: int | None,
) -> tuple[Float[Array, "*M"], Float[Array, "*M S"], Array]:
    """Float32 scores of the targets and of the drawn items, and which of these are the target."""
    hidden, targets, num_items = checked(hidden, table, targets, weights, num_items)
    shared = negatives.ndim == 1
    if not shared and negatives.shape[:-1] != targets.shape or negatives.shape[-1] < 1:
        raise ValueError(
            f"negatives are [S] or [*M, S] with S >= 1: {negatives.shape} for targets "
            f"{targets.shape}"
        )
    if not shared:
        negatives = jnp.where((weights == 0)[..., None], 1, negatives)
    _check_negatives(negatives, num_items)
    own = jnp.einsum(
        "...d,...d->...", hidden, _rows(table, targets, num_items, hidden.dtype), **_FLOAT32
    )
    items = _rows(table, negatives, num_items, hidden.dtype)
    others = jnp.einsum(
        "...d,sd->...s" if shared else "...d,...sd->...s", hidden, items, **_FLOAT32
    )
    return own, others, negatives == targets[..., None]


_FLOAT32 = {"preferred_element_type": jnp.float32}


def _rows(table: Array, ids: Array, num_items: int, dtype: DTypeLike) -> Array:
    """Item vectors; NaN where the id is no item, so that it cannot pass for one under `jit`."""
    valid = (ids >= 1) & (ids <= num_items)
    return jnp.where(valid[..., None], table[jnp.where(valid, ids, 1)], jnp.nan).astype(dtype)


def _check_negatives(negatives: Array, num_items: int) -> None:
    if isinstance(negatives, jax.core.Tracer):
        return
    ids = np.asarray(negatives)
    if ids.min() < 1 or ids.max() > num_items:
        raise ValueError(f"negatives are items 1..{num_items}, not {ids.min()}..{ids.max()}")
