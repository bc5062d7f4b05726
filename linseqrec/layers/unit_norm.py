"""Vectors of unit length, for scores that are cosines."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

# The least length that is divided by.
_LEAST = 1e-6


def unit_length(x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """Returns x / max(|x|, 1e-6); lengths are float32 whatever the dtype."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    square = jnp.sum(wide * wide, axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(jnp.maximum(square, _LEAST**2))).astype(x.dtype)


class UnitNorm(nnx.Module):
    """Gives vectors the length 1/τ: their products with unit vectors are cosines over τ."""

    def __init__(self, temperature: float):
        """Args: `temperature` is τ."""
        self.temperature = temperature

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Returns x / max(|x|, 1e-6) / τ."""
        return unit_length(x) / self.temperature
