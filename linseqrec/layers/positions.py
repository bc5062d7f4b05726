"""Absolute positions: learned, and fixed sinusoids."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int


class PositionEmbedding(nnx.Module):
    """One learned vector a position, added to the item's embedding.

    Attributes:
      table: float32 [max_length, D], drawn from N(0, deviation²), by default as item vectors are.
    """

    def __init__(
        self,
        max_length: int,
        width: int,
        *,
        deviation: float | None = None,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        draw = nnx.initializers.normal(width**-0.5 if deviation is None else deviation)
        self.table = nnx.Param(draw(rngs.params(), (max_length, width), jnp.float32))
        self.dtype = dtype

    def __call__(
        self, x: Float[Array, "B T D"], positions: Int[Array, "B T"]
    ) -> Float[Array, "B T D"]:
        """Adds the positions' vectors to x.

        Raises:
          ValueError: If a row is longer than the table.
        """
        table = self.table[...]
        if positions.shape[1] > len(table):
            raise ValueError(
                f"rows of {positions.shape[1]} slots, but only {len(table)} positions were "
                "learned: raise the model's max_length or shorten the rows"
            )
        # A position past the end (a history carried on too far) must not pass for the last one.
        return x + jnp.take(table, positions, axis=0, mode="fill").astype(self.dtype)


class Sinusoids(nnx.Module):
    """Fixed sinusoids in the place of learned positions."""

    def __init__(self, width: int):
        self.width = width

    def __call__(
        self, x: Float[Array, "B T D"], positions: Int[Array, "B T"]
    ) -> Float[Array, "B T D"]:
        """Adds the positions' sinusoids to x."""
        return x + sinusoidal_positions(positions, self.width).astype(x.dtype)


class NoPositions(nnx.Module):
    """Stands for position vectors in a model that adds none."""

    def __call__(
        self, x: Float[Array, "B T D"], positions: Int[Array, "B T"]
    ) -> Float[Array, "B T D"]:
        """Returns x."""
        del positions
        return x


def sinusoidal_positions(positions: Int[Array, "B T"], width: int) -> Float[Array, "B T D"]:
    """Fixed sinusoids of the positions, sines then cosines (arXiv 1706.03762, section 3.5)."""
    rates = 10_000.0 ** (-jnp.arange(width // 2, dtype=jnp.float32) / (width // 2))
    angles = positions[..., None].astype(jnp.float32) * rates
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
