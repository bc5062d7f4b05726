"""Multi-head softmax self-attention."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from linseqrec.layers.standard import Dense
from linseqrec.ops.softmax_attention import softmax_attention


class SelfAttention(nnx.Module):
    """Causal multi-head attention within each segment: W_o softmax(q kᵀ / √K) v."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.heads = heads
        self.query_key_value = Dense(width, 3 * width, dtype=dtype, rngs=rngs)
        self.output = Dense(width, width, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B T D"], segment_ids: Int[Array, "B T"], state: tuple[()] = ()
    ) -> tuple[Float[Array, "B T D"], tuple[()]]:
        """Mixes a row's events over time; 0 in `segment_ids` is padding; it carries no state."""
        shape = (*x.shape[:2], self.heads, x.shape[2] // self.heads)
        query, key, value = (
            part.reshape(shape) for part in jnp.split(self.query_key_value(x), 3, axis=-1)
        )
        mixed = softmax_attention(query, key, value, segment_ids=segment_ids)
        return self.output(mixed.reshape(x.shape)), state
