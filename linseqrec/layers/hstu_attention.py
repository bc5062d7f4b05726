"""The layer of HSTU (arXiv 2402.17152): pointwise attention with its gate, norms and residual."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from linseqrec.layers.standard import Dense, dropout, layer_norm
from linseqrec.ops.silu_attention import TimeBias, silu_attention

# Of the time's buckets; int32 seconds reach 72 of them.
_BUCKETS = 129
# Standard deviation of fresh projections and biases.
_DEVIATION = 0.02
_EPSILON = 1e-6


class HSTUAttention(nnx.Module):
    """A sequential transduction unit; it stands for attention and feed-forward half together.

        u, v, q, k = SiLU(W LN(x))                                        of all heads each
        o_t = Σ_{s ≤ t} SiLU(q_t·k_s + p[t - s] + w[bucket(asked_t - τ_s)]) v_s / N    per head
        y = x + W_o Drop(u ⊙ LN(o)) + b_o

    Source: arXiv 2402.17152 and its released code: the equations, the biases that all heads share,
    the constant N, norms without parameters (ε 1e-6) and the starting values. Ours: p has no
    entries for the future, which the released code holds and masks.

    Attributes:
      position_bias: p, float32 [N].
      time_bias: w, float32 [129]; None without a time bias.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        max_length: int,
        timed: bool,
        rate: float,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Args: `heads` divide the width; `max_length` is N; `rate` is that of dropout."""
        self.heads, self.max_length, self.rate = heads, max_length, rate
        self.norm, self.read_norm = (
            layer_norm(width, epsilon=_EPSILON, affine=False, dtype=dtype, rngs=rngs)
            for _ in range(2)
        )
        self.project = Dense(
            width, 4 * width, bias=False, deviation=_DEVIATION, dtype=dtype, rngs=rngs
        )
        draw = nnx.initializers.normal(_DEVIATION)
        self.position_bias = nnx.Param(draw(rngs.params(), (max_length,), jnp.float32))
        self.time_bias = nnx.Param(draw(rngs.params(), (_BUCKETS,), jnp.float32)) if timed else None
        self.output = Dense(width, width, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"],
        timestamps: Int[Array, "B T"],
        asked: Int[Array, "B T"],
        *,
        dropout_key: PRNGKeyArray | None,
    ) -> Float[Array, "B T D"]:
        """Takes a row's events through the layer.

        Args:
          x: The residual stream.
          segment_ids: One id from 1 per history; 0 is padding.
          timestamps: τ, of each event, seconds.
          asked: The time for which each event's prediction is made, seconds.
          dropout_key: Randomness of dropout; None is evaluation.

        Returns:
          The residual stream behind the layer.

        Raises:
          ValueError: If the row is longer than `max_length`.
        """
        shape = (*x.shape[:2], self.heads, x.shape[2] // self.heads)
        gate, value, query, key = jnp.split(jax.nn.silu(self.project(self.norm(x))), 4, axis=-1)
        time_bias = None
        if self.time_bias is not None:
            time_bias = TimeBias(self.time_bias[...], asked, timestamps)
        read = silu_attention(
            query.reshape(shape),
            key.reshape(shape),
            value.reshape(shape),
            position_bias=self.position_bias[...],
            time_bias=time_bias,
            divisor=float(self.max_length),
            segment_ids=segment_ids,
        )
        mixed = gate * self.read_norm(read.reshape(x.shape))
        return x + self.output(dropout(mixed, self.rate, dropout_key))
