"""The gated feed-forward half of a block."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from linseqrec.layers.dense import dense
from linseqrec.layers.dropout import dropout


class SwiGLU(nnx.Module):
    """W_o Drop(SiLU(W_g x) ⊙ W_u x), without biases (arXiv 2002.05202)."""

    def __init__(
        self, width: int, hidden_width: int, rate: float, *, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        make = lambda i, o: dense(i, o, bias=False, dtype=dtype, rngs=rngs)  # noqa: E731
        self.gate, self.expand = make(width, hidden_width), make(width, hidden_width)
        self.contract = make(hidden_width, width)
        self.rate = rate

    def __call__(
        self, x: Float[Array, "B T D"], *, dropout_key: PRNGKeyArray | None = None
    ) -> Float[Array, "B T D"]:
        """Maps every position on its own; `dropout_key=None` is evaluation."""
        hidden = jax.nn.silu(self.gate(x)) * self.expand(x)
        return self.contract(dropout(hidden, self.rate, dropout_key))
