"""The time since the last event as features."""

import math

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from linseqrec.layers.standard import Dense
from linseqrec.layers.time_gaps import MOST_DAYS


class GapFeatures(nnx.Module):
    """φ = W_φ [sin(ω_j u), 1 − cos(ω_j u)],  u = log(1 + Δ),  ω_j = 2^j π / log(1 + 3650).

    Δ is in days; the slowest wave makes half a turn over ten years, the fastest tells seconds from
    hours. φ(0) = 0: without gaps nothing is added anywhere. Ours.
    """

    def __init__(
        self, features: int, *, waves: int = 8, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
    ):
        self.waves, self.dtype = waves, dtype
        self.projection = Dense(2 * waves, features, bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, gaps: Float[Array, "B T"]) -> Float[Array, "B T F"]:
        """The features of gaps in days."""
        rates = 2.0 ** jnp.arange(self.waves) * (math.pi / math.log1p(MOST_DAYS))
        angles = jnp.log1p(gaps)[..., None] * rates
        features = jnp.concatenate([jnp.sin(angles), 1 - jnp.cos(angles)], axis=-1)
        return self.projection(features.astype(self.dtype))


class NoGapFeatures(nnx.Module):
    """Stands for `GapFeatures` in a model whose queries and keys know no gaps."""

    def __call__(self, gaps: Float[Array, "B T"]) -> Float[Array, "B T 0"]:
        """No features."""
        return jnp.zeros((*gaps.shape, 0), gaps.dtype)
