"""LRURec: linear recurrent units for sequential recommendation (arXiv 2310.02367).

    H = LN(Drop(E[items]))
    per block:  H = LN(H + Drop(LRU(H)));  H = LN(H + Drop(FFN(H)))
    scores = H E^T

Marked [P]: the paper and its released code. Marked [O]: ours.

- [P] The unit (`LinearRecurrentUnit`), the feed-forward half (4 D, GELU, dropout inside), the post
  norms (ε = 1e-5), the dropouts, and all starting values.
- [O] Segments: a history's first event multiplies the state before it by 0. The released code pads
  one history per row on its left.
- [O] The scores have no bias per item, as in every model here. The released model has one.
- [O] The unit runs as one associative scan in complex64 (`ops/diagonal_recurrence.py`). The
  released code doubles intervals, in the same numbers.

The parameters by name, with i the block from 0, 2 D channels, kernels [in, out]. The released
in_proj and out_proj are complex; here their parts stand side by side in real arrays:

    embedding/table [N + 1, D]                       E; row 0 is the padding item
    norm/{scale,bias}                                LN over the embeddings
    blocks/i/unit/{log_rate,log_angle,log_gain}      [2 D], the rows of params_log: ν, θ, γ
    blocks/i/unit/input/kernel [D, 4 D]              Re in_proj, then Im in_proj;  bias likewise
    blocks/i/unit/output/kernel [4 D, D]             Re out_proj, then -Im out_proj
    blocks/i/unit/output/bias [D]                    Re of out_proj's bias
    blocks/i/{unit_norm,feed_forward_norm}/{scale,bias}
    blocks/i/feed_forward/{expand,contract}/{kernel,bias}
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from linseqrec.config_fields import Count, Positive, Rate
from linseqrec.events import Events
from linseqrec.layers.block import PostNormBlock
from linseqrec.layers.standard import (
    Dense,
    FeedForward,
    ItemEmbedding,
    dropout,
    layer_norm,
    split_key,
)
from linseqrec.layers.states import empty, past_or_none
from linseqrec.models.base import Dtype, Encoding, ModelConfig, SequenceModel, request_layer
from linseqrec.ops.diagonal_recurrence import diagonal_recurrence

# Fresh multipliers lie in the ring between these radii.
_RADII = (0.8, 0.99)
# Of fresh weights, as released.
_DEVIATION = 0.02


@dataclasses.dataclass(frozen=True)
class LRURecConfig(ModelConfig):
    """LRURec's hyperparameters; the defaults are the released settings for ML-1M.

    Attributes:
      width: D.
      num_layers: Blocks.
      dropout: Rate on the embeddings, the unit's output and the feed-forward half.
      table_deviation: Standard deviation of the fresh item vectors. With `own_items` set it to
        about 1 / √D, for vectors of unit length: from the released ones, the scores diverge.
      dtype: Compute dtype; "auto" is bfloat16 on an accelerator (`ModelConfig.compute_dtype`). The
        recurrence is float32.
    """

    width: Count = 64
    num_layers: Count = 2
    dropout: Rate = 0.2
    table_deviation: Positive = _DEVIATION
    dtype: Dtype = "auto"

    reads_request_times = True

    def build(self, num_items: int, *, rngs: nnx.Rngs, request_time: bool = False) -> "LRURec":
        """Makes the model with fresh parameters; see `ModelConfig.build`."""
        return LRURec(self, num_items, request_time=request_time, rngs=rngs)


class LinearRecurrentUnit(nnx.Module):
    """A diagonal complex recurrence between two complex projections.

        λ = exp(-e^ν + i e^θ);  u = e^γ ⊙ (W_in x + b_in)
        h_t = λ ⊙ h_{t-1} + u_t
        y = Re(W_out h + b_out)

    Source: arXiv 2303.06349, in LRURec's form: no skip of the inputs beside the residual.

    Attributes:
      log_rate, log_angle, log_gain: ν, θ and γ, float32 [E], E = 2 D. Fresh λ are uniform in a
        ring, and fresh gains √(1 - |λ|²) keep states of the inputs' size.
    """

    def __init__(self, width: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.channels = channels = 2 * width
        self.dtype = dtype
        radius, angle = (
            jax.random.uniform(rngs.params(), (channels,), minval=1e-7) for _ in range(2)
        )
        inner, outer = (bound**2 for bound in _RADII)
        rate = -0.5 * jnp.log(inner + (outer - inner) * radius)
        self.log_rate = nnx.Param(jnp.log(rate))
        self.log_angle = nnx.Param(jnp.log(2 * math.pi * angle))
        self.log_gain = nnx.Param(0.5 * jnp.log(-jnp.expm1(-2 * rate)))
        self.input = Dense(width, 2 * channels, dtype=dtype, rngs=rngs)
        self.output = Dense(2 * channels, width, dtype=dtype, rngs=rngs)

    def initial_state(self, batch_size: int) -> Float[Array, "B 2 E"]:
        """The state before any event: real and imaginary part."""
        return empty(batch_size, 2, self.channels)

    def __call__(
        self, x: Float[Array, "B T D"], segment_ids: Int[Array, "B T"], state: Float[Array, "B 2 E"]
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B 2 E"]]:
        """Mixes a row's events over time.

        Args:
          x: Inputs.
          segment_ids: One id from 1 per history; 0 is padding.
          state: The past of each row's first segment, float32.

        Returns:
          The mixed values, and the state after each row's last segment.
        """
        real, imaginary = jnp.split(self.input(x).astype(jnp.float32), 2, axis=-1)
        gain, before = jnp.exp(self.log_gain[...]), past_or_none(state)
        multiplier = jnp.exp(
            jax.lax.complex(-jnp.exp(self.log_rate[...]), jnp.exp(self.log_angle[...]))
        )
        states, after = diagonal_recurrence(
            jax.lax.complex(gain * real, gain * imaginary),
            multiplier,
            segment_ids=segment_ids,
            initial_state=None if before is None else jax.lax.complex(before[:, 0], before[:, 1]),
        )
        parts = jnp.concatenate([states.real, states.imag], axis=-1)
        output = self.output(parts.astype(self.dtype))
        return output, jnp.stack([after.real, after.imag], axis=1)


class LRURec(SequenceModel):
    """The model; see the module's docstring."""

    def __init__(
        self,
        config: LRURecConfig,
        num_items: int,
        *,
        request_time: bool = False,
        rngs: nnx.Rngs,
    ):
        self.config = config
        width, rate, dtype = config.width, config.dropout, config.compute_dtype

        def norm() -> nnx.LayerNorm:
            return layer_norm(width, epsilon=1e-5, dtype=dtype, rngs=rngs)

        self.embedding = ItemEmbedding(num_items, width, dtype=dtype, rngs=rngs)
        self.norm = norm()
        self.blocks = nnx.List(
            [
                PostNormBlock(
                    norm(),
                    LinearRecurrentUnit(width, dtype=dtype, rngs=rngs),
                    norm(),
                    FeedForward(width, 4 * width, rate, dtype=dtype, rngs=rngs),
                    rate=rate,
                    name="unit",
                )
                for _ in range(config.num_layers)
            ]
        )
        # Released: all but the norms and the recurrence, biases too.
        fresh = nnx.initializers.truncated_normal(_DEVIATION, lower=-2.0, upper=2.0)
        for _, module in nnx.iter_modules(self):
            for name in ("table", "kernel", "bias"):
                parameter = getattr(module, name, None)
                if isinstance(parameter, nnx.Param) and not isinstance(module, nnx.LayerNorm):
                    parameter[...] = fresh(rngs.params(), parameter.shape)
        self.embedding.table[...] *= config.table_deviation / _DEVIATION
        self.request_time = request_layer(request_time, width, dtype=dtype, rngs=rngs)

    def initial_state(self, batch_size: int) -> list[Float[Array, "B 2 E"]]:
        """One state per block."""
        return [block.initial_state(batch_size) for block in self.blocks]

    def encode(
        self,
        events: Events,
        state: list[Float[Array, "B 2 E"]],
        *,
        dropout_key: PRNGKeyArray | None,
    ) -> Encoding:
        """Returns hidden states [B, T, D], no auxiliary losses, and one state per block."""
        embedding_key, *block_keys = split_key(dropout_key, 1 + len(self.blocks))
        x = dropout(self.embedding(events.items), self.config.dropout, embedding_key)
        x = self.request_time.enter(self.norm(x), events)
        ids, after = events.segment_ids, []
        for block, before, key in zip(self.blocks, state, block_keys, strict=True):
            x, moved = block(x, ids, (ids,), before, dropout_key=key)
            after.append(moved)
        return Encoding(self.request_time.leave(x, events), state=after)
