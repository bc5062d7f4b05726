"""Item embedding, tied with the output table."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int


class ItemEmbedding(nnx.Module):
    """The item table: rows for ids 1..N, and row 0 for padding.

    The padding row takes no gradient from being looked up.

    Attributes:
      table: float32 [N + 1, D], drawn from N(0, deviation²), the padding row too; by default the
        deviation is 1 / √D, so that an item's vector has about unit length.
    """

    def __init__(
        self,
        num_items: int,
        width: int,
        *,
        deviation: float | None = None,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        draw = nnx.initializers.normal(width**-0.5 if deviation is None else deviation)
        self.table = nnx.Param(draw(rngs.params(), (num_items + 1, width), jnp.float32))
        self.dtype = dtype

    def __call__(self, items: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Looks up the rows of `items`, in the compute dtype."""
        rows = jnp.take(self.table[...], items, axis=0).astype(self.dtype)
        return jnp.where((items == 0)[..., None], jax.lax.stop_gradient(rows), rows)
