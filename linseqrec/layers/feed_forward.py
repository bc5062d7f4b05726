"""The position-wise feed-forward half of a block."""

from collections.abc import Callable
from functools import partial

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from linseqrec.layers.dense import Dense
from linseqrec.layers.dropout import dropout

exact_gelu = partial(jax.nn.gelu, approximate=False)


class FeedForward(nnx.Module):
    """Two dense layers with an activation between: W_2 Drop(φ(W_1 x + b_1)) + b_2.

    φ is the exact (erf) GELU unless said otherwise.
    """

    def __init__(
        self,
        width: int,
        hidden_width: int,
        rate: float,
        *,
        activation: Callable[[Array], Array] = exact_gelu,
        deviation: float | None = None,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Args: `deviation` is that of fresh kernels (see `Dense`)."""
        self.expand = Dense(width, hidden_width, deviation=deviation, dtype=dtype, rngs=rngs)
        self.contract = Dense(hidden_width, width, deviation=deviation, dtype=dtype, rngs=rngs)
        self.rate, self.activation = rate, activation

    def __call__(
        self, x: Float[Array, "B T D"], *, dropout_key: PRNGKeyArray | None = None
    ) -> Float[Array, "B T D"]:
        """Maps every position on its own; `dropout_key=None` is evaluation."""
        hidden = self.activation(self.expand(x))
        return self.contract(dropout(hidden, self.rate, dropout_key))
