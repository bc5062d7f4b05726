"""HSTU: hierarchical sequential transduction units (arXiv 2402.17152), as a recommender.

    H = Drop(√D E[items] + P[positions])
    per block:  u, v, q, k = SiLU(W LN(H))
                o_t = Σ_{s ≤ t} SiLU(q_t·k_s + p[t - s] + w[bucket(asked_t - τ_s)]) v_s / N
                H = H + W_o Drop(u ⊙ LN(o)) + b_o
    scores = LN(H) E^T,  or with a temperature τ  cos(H, E) / τ

The block is `layers/hstu_attention.py`, its attention `ops/silu_attention.py`. Blocks have no
feed-forward half: the gate u stands for it. Time is quadratic in the row's length, memory is not.

From the paper and its released code [P]: all equations but those named below. In the released code
scores are cosines over a temperature of .05 (`temperature=0.05`), and asked_t is the time of event
t + 1.
Ours [O]:

  - If request times are hidden, asked_t is the time of event t itself. If they are known, asked_t
    is the request time, as released, and `layers/request_time.py` tells the model more of it.
  - Without a temperature, scores are dot products behind a LayerNorm, as in this library's other
    models.
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

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from linseqrec.config_fields import ConfigError, Count, Positive, Rate
from linseqrec.events import Events
from linseqrec.layers.hstu_attention import HSTUAttention
from linseqrec.layers.request_time import request_layer
from linseqrec.layers.standard import ItemEmbedding, PositionEmbedding, dropout, split_key
from linseqrec.layers.time_gaps import times_asked
from linseqrec.layers.unit_norm import score_norm, unit_length
from linseqrec.models.base import Dtype, Encoding, ModelConfig, NoState, SequenceModel


@dataclasses.dataclass(frozen=True)
class HSTUConfig(ModelConfig):
    """HSTU's hyperparameters; the defaults are its released ones for ML-1M, but for the width.

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
