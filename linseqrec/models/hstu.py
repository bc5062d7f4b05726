"""HSTU: hierarchical sequential transduction units (arXiv 2402.17152), as a recommender.

    H = Drop(√D E[items] + P[positions])
    per block:  u, v, q, k = SiLU(W LN(H))
                o_t = Σ_{s ≤ t} SiLU(q_t·k_s + p[t - s] + w[bucket(asked_t - τ_s)]) v_s / N
                H = H + W_o Drop(u ⊙ LN(o)) + b_o
    scores = LN(H) E^T,  or with a temperature τ  cos(H, E) / τ

The attention is `ops/silu_attention.py`. Blocks have no feed-forward half: the gate u stands for
it. Time is quadratic in the row's length, memory is not.

From the paper and its released code [P]: all equations but those named below, the constant N, and
the blocks' starting values. In the released code
scores are cosines over a temperature of .05 (`temperature=0.05`), and asked_t is the time of event
t + 1.
Ours [O]:

  - If request times are hidden, asked_t is the time of event t itself. If they are known, asked_t
    is the request time, as released, and `layers/request_time.py` tells the model more of it.
  - Without a temperature, scores are dot products behind a LayerNorm, as in this library's other
    models.
  - p has no entries for the future, which the released code holds and masks.
  - Keys and values have the width of a head, D / H. Segments keep the histories of a packed row
    apart.
  - Fresh item vectors are drawn from N(0, 1/D); the released ones from N(0, .02²).

The parameters by name, with i the block from 0, kernels [in, out]:

    embedding/table [N + 1, D]            E; row 0 is the padding item
    positions/table [max_length, D]       P
    blocks/i/project/kernel [D, 4D]       W: u of all heads, then v, q and k
    blocks/i/position_bias [max_length]   p, by distance from 0
    blocks/i/time_bias [129]              w, where there is a time bias
    blocks/i/output/{kernel [D, D],bias}  W_o, b_o
    norm/{scale,bias}                     the last LayerNorm, without a temperature
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from linseqrec.config_fields import ConfigError, Count, Positive, Rate
from linseqrec.events import Events
from linseqrec.layers.standard import (
    Dense,
    ItemEmbedding,
    PositionEmbedding,
    dropout,
    layer_norm,
    score_norm,
    split_key,
    unit_length,
)
from linseqrec.layers.time_gaps import times_asked
from linseqrec.models.base import (
    Dtype,
    Encoding,
    ModelConfig,
    NoState,
    SequenceModel,
    request_layer,
)
from linseqrec.ops.silu_attention import TimeBias, silu_attention

# Of the time's buckets; int32 seconds reach 72 of them.
_BUCKETS = 129
# Standard deviation of fresh projections and biases.
_DEVIATION = 0.02
_EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class HSTUConfig(ModelConfig):
    """HSTU's hyperparameters; released values for ML-1M, except width and temperature.

    Attributes:
      width: D; released: 50.
      heads: Attention heads; they divide the width. Released: 1, and 2 with 8 blocks.
      num_layers: Blocks; released: 2, and 8.
      dropout: Rate on the embeddings and before each block's output projection.
      max_length: The longest row it can serve, since positions are learned; also N, the number by
        which attention is divided.
      time_bias: Whether the time between events biases the attention.
      temperature: Scores are cosines over it; None for dot products. Released: 0.05.
      dtype: Compute dtype; "auto" is bfloat16 on an accelerator (`ModelConfig.compute_dtype`).
    """

    width: Count = 64
    heads: Count = 1
    num_layers: Count = 2
    dropout: Rate = 0.2
    max_length: Count = 200
    time_bias: bool = True
    temperature: Positive | None = None
    dtype: Dtype = "auto"

    reads_request_times = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads:
            raise ConfigError(f"width {self.width} must be a multiple of heads {self.heads}")

    @property
    def longest_row(self) -> int:
        """The most slots of a row that it reads."""
        return self.max_length

    @property
    def reads_timestamps(self) -> list[str]:
        """The setting by which it reads the log's times."""
        return ["time_bias=True"] if self.time_bias else []

    def build(self, num_items: int, *, rngs: nnx.Rngs, request_time: bool = False) -> "HSTU":
        """Makes the model with fresh parameters; see `ModelConfig.build`."""
        return HSTU(self, num_items, request_time=request_time, rngs=rngs)


class HSTUAttention(nnx.Module):
    """A sequential transduction unit; it stands for attention and feed-forward half together.

        u, v, q, k = SiLU(W LN(x))                                        of all heads each
        o_t = Σ_{s ≤ t} SiLU(q_t·k_s + p[t - s] + w[bucket(asked_t - τ_s)]) v_s / N    per head
        y = x + W_o Drop(u ⊙ LN(o)) + b_o

    The biases are shared by all heads. The norms have no parameters (ε 1e-6).

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


class HSTU(SequenceModel):
    """The model; see the module's docstring. It re-reads whole histories: it carries no state."""

    def __init__(
        self, config: HSTUConfig, num_items: int, *, request_time: bool = False, rngs: nnx.Rngs
    ):
        self.config = config
        width, dtype = config.width, config.compute_dtype
        self.embedding = ItemEmbedding(num_items, width, dtype=dtype, rngs=rngs)
        self.positions = PositionEmbedding(config.max_length, width, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List(
            [
                HSTUAttention(
                    width,
                    config.heads,
                    max_length=config.max_length,
                    timed=config.time_bias,
                    rate=config.dropout,
                    dtype=dtype,
                    rngs=rngs,
                )
                for _ in range(config.num_layers)
            ]
        )
        self.norm = score_norm(width, config.temperature, dtype=dtype, rngs=rngs)
        self.request_time = request_layer(request_time, width, dtype=dtype, rngs=rngs)

    def item_table(self) -> Float[Array, "N1 D"]:
        """The output table, float32: items' vectors, of unit length where scores are cosines."""
        table = super().item_table()
        return table if self.config.temperature is None else unit_length(table)

    def encode(
        self, events: Events, state: NoState, *, dropout_key: PRNGKeyArray | None
    ) -> Encoding:
        """Returns hidden states [B, T, D]; causal, segment by segment.

        Raises:
          ValueError: If the row is longer than `max_length`.
        """
        events = self.request_time.visible_events(events)
        embedding_key, *block_keys = split_key(dropout_key, 1 + len(self.blocks))
        x = self.embedding(events.items) * self.config.width**0.5
        x = self.positions(x, events.positions)
        x = self.request_time.enter(x, events)
        x = dropout(x, self.config.dropout, embedding_key)
        times, asked = jnp.asarray(events.timestamps), times_asked(events)
        for block, key in zip(self.blocks, block_keys, strict=True):
            x = block(x, events.segment_ids, times, asked, dropout_key=key)
        return Encoding(self.request_time.leave(self.norm(x), events), state=state)
