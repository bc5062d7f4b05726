"""What the losses over item scores ask of their inputs: shapes, item ids, absent tokens.

Axis letters: M tokens (any leading axes), D width, N items.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def checked(
    hidden: Float[Array, "*M D"],
    table: Float[Array, "N1 D"],
    targets: Int[Array, "*M"],
    weights: Float[Array, "*M"],
    num_items: int | None = None,
) -> tuple[Float[Array, "*M D"], Int[Array, "*M"], int]:
    """Makes absent tokens harmless, and tokens that name no item visible.

    Args:
      hidden: Encodings to score with.
      table: Item vectors.
      targets: Item ids.
      weights: Weight of each token; where it is 0 the token is absent.
      num_items: N; None for all rows of the table but row 0.

    Returns:
      The hidden states, 0 where the weight is 0, and otherwise NaN where the target is not in 1..N:
      a value cannot raise under `jit`, but it can be kept from passing for a loss. The targets,
      with 1 in both places. N.

    Raises:
      ValueError: The arrays do not fit together: shapes, integer targets, at least one token and
        one item. Or as `check_targets`.
    """
    if table.ndim != 2 or hidden.ndim < 1 or hidden.shape[-1] != table.shape[1]:
        raise ValueError(
            f"hidden [..., D] and table [N + 1, D] do not fit: {hidden.shape}, {table.shape}"
        )
    if targets.shape != hidden.shape[:-1] or weights.shape != hidden.shape[:-1]:
        raise ValueError(
            f"targets {targets.shape} and weights {weights.shape} must have the leading axes of "
            f"hidden, {hidden.shape[:-1]}"
        )
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        raise ValueError(f"targets are item ids, integers, not {targets.dtype}")
    if targets.size < 1 or table.shape[0] < 2:
        raise ValueError(f"needs a token and an item: hidden {hidden.shape}, table {table.shape}")
    num_items = table.shape[0] - 1 if num_items is None else num_items
    check_targets(targets, weights, num_items)
    absent = weights == 0
    valid = (targets >= 1) & (targets <= num_items)
    hidden = jnp.where((absent | valid)[..., None], hidden, jnp.nan)
    hidden = jnp.where(absent[..., None], 0, hidden)
    return hidden, jnp.where(absent | ~valid, 1, targets), num_items


def check_targets(targets: Int[Array, "*M"], weights: Float[Array, "*M"], num_items: int) -> None:
    """Refuses targets that are no items; traced arrays, whose values are unknown, pass.

    The losses call this; call it on a batch whose loss came out NaN to name the culprit.

    Args:
      targets: Item ids.
      weights: Weight of each; where it is 0 the target may be anything.
      num_items: Size of the catalogue N.

    Raises:
      ValueError: A target out of 1..N with a weight, named by its index.
    """
    if isinstance(targets, jax.core.Tracer) or isinstance(weights, jax.core.Tracer):
        return
    ids, counted = np.asarray(targets), np.asarray(weights) != 0
    wrong = np.argwhere(counted & ((ids < 1) | (ids > num_items)))
    if len(wrong):
        first = tuple(wrong[0].tolist())
        raise ValueError(
            f"{len(wrong)} targets with a weight are not in 1..{num_items}: the first is "
            f"{ids[first]} at index {first}. Give padding the weight 0"
        )
