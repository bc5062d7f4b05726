"""The gated feed-forward half of a block."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from linseqrec.layers.dense import Dense
from linseqrec.layers.dropout import dropout


class SwiGLU(nnx.Module):
    """W_3 Drop(SiLU(W_1 x) ⊙ W_2 x), without biases (arXiv 2002.05202).

    W_1 and W_2 are the halves of one kernel, in this order.
    """

    def __init__(
        self, width: int, hidden_width: int, rate: float, *, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        self.expand = Dense(width, 2 * hidden_width, bias=False, dtype=dtype, rngs=rngs)
        self.contract = Dense(hidden_width, width, bias=False, dtype=dtype, rngs=rngs)
        self.rate = rate

    def __call__(
        self, x: Float[Array, "B T D"], *, dropout_key: PRNGKeyArray | None = None
    ) -> Float[Array, "B T D"]:
        """Maps every position on its own; `dropout_key=None` is evaluation."""
        gate, value = jnp.split(self.expand(x), 2, axis=-1)
        return self.contract(dropout(jax.nn.silu(gate) * value, self.rate, dropout_key))
