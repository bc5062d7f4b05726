"""The inverse of unit lower-triangular matrices, by blocked forward substitution.

Axes: C rows and columns.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Rows substituted one by one; larger matrices are merged from blocks of them.
_BLOCK = 16
_matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


@jax.custom_vjp
def inverse_unit_lower(lower: Float[Array, "*batch C C"]) -> Float[Array, "*batch C C"]:
    """Inverts I + L for a strictly lower-triangular L.

    Blocks of 16 rows are inverted by substitution, and neighbours merged:

        [[X, 0], [Z, Y]]^-1 = [[X^-1, 0], [-Y^-1 Z X^-1, Y^-1]]

    Not by powers of L (Neumann products, Newton-Schulz), which lose every digit where rows of L are
    nearly equal, and not by LAPACK, two calls of which can deadlock XLA's CPU backend. The gradient
    is analytic: dL = -StrictLower(Tᵀ dT Tᵀ) for T = (I + L)^-1.

    Args:
      lower: [..., C, C], float32 or float64; what stands on and above the diagonal must be 0.

    Returns:
      (I + L)^-1, [..., C, C].
    """
    rows = lower.shape[-1]
    if rows <= _BLOCK:
        return _substitute(lower)
    # Rows of the identity make the number of blocks a power of two.
    size = _BLOCK
    while size < rows:
        size *= 2
    lower = jnp.pad(lower, ((0, 0),) * (lower.ndim - 2) + ((0, size - rows),) * 2)
    inverse = _substitute(_blocks(lower, _BLOCK, 0))
    merged = _BLOCK
    while merged < size:
        first, second = inverse[..., 0::2, :, :], inverse[..., 1::2, :, :]
        corner = -_matmul(second, _matmul(_blocks(lower, merged, merged), first))
        above = jnp.concatenate([first, jnp.zeros_like(first)], axis=-1)
        inverse = jnp.concatenate([above, jnp.concatenate([corner, second], axis=-1)], axis=-2)
        merged *= 2
    return inverse[..., 0, :rows, :rows]


def _forward(lower: Float[Array, "*batch C C"]) -> tuple[Array, Array]:
    inverse = inverse_unit_lower(lower)
    return inverse, inverse


def _backward(
    inverse: Float[Array, "*batch C C"], cotangent: Float[Array, "*batch C C"]
) -> tuple[Float[Array, "*batch C C"]]:
    transposed = jnp.swapaxes(inverse, -1, -2)
    return (-jnp.tril(_matmul(transposed, _matmul(cotangent, transposed)), -1),)


inverse_unit_lower.defvjp(_forward, _backward)


def _blocks(x: Float[Array, "*batch C C"], size: int, below: int) -> Array:
    """Blocks [..., n, size, size]: those on the diagonal (below=0), or those that join pairs."""
    # Static slices: gathered diagonals are miscompiled by XLA's CPU backend (jax 0.10.2).
    starts = range(0, x.shape[-1] - below, size + below)
    return jnp.stack([x[..., s + below : s + below + size, s : s + size] for s in starts], axis=-3)


def _substitute(lower: Float[Array, "*batch C C"]) -> Float[Array, "*batch C C"]:
    """Inverts one small block: column by column, what row j leaves to the rows below it."""
    rows = lower.shape[-1]
    inverse = jnp.broadcast_to(jnp.eye(rows, dtype=lower.dtype), lower.shape)
    for j in range(rows - 1):
        inverse = inverse - lower[..., :, j : j + 1] * inverse[..., j : j + 1, :]
    return inverse
