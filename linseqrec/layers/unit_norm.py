"""Vectors of unit length: for keys and queries, and for scores that are cosines."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from linseqrec.layers.standard import layer_norm


def unit_length(x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """Scales vectors to length 1 (those much shorter than 1e-3 towards 0), in x's dtype.

    It returns x / √(|x|² + 1e-6), where |x|² is float32 whatever the dtype.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    square = jnp.sum(jnp.square(wide), axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(square + 1e-6)).astype(x.dtype)


class UnitNorm(nnx.Module):
    """Gives vectors the length 1/τ: their products with unit vectors are cosines over τ."""

    def __init__(self, temperature: float):
        """Args: `temperature` is τ."""
        self.temperature = temperature

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Returns x / √(|x|² + 1e-6) / τ."""
        return unit_length(x) / self.temperature


def score_norm(
    width: int, temperature: float | None, *, dtype: DTypeLike, rngs: nnx.Rngs
) -> nnx.LayerNorm | UnitNorm:
    """The last norm of a model: a LayerNorm for dot products, a UnitNorm for cosines.

    Args:
      width: D.
      temperature: Of cosines; None for dot products.
      dtype: Compute dtype.
      rngs: Randomness.
    """
    if temperature is None:
        return layer_norm(width, epsilon=1e-6, dtype=dtype, rngs=rngs)
    return UnitNorm(temperature)
