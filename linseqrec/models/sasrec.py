"""SASRec: self-attentive sequential recommendation (arXiv 1808.09781), in its pre-norm form.

    H = Drop(√D E[items] + P[positions])
    per block:  H = H + Drop(Attention(LN(H)));  H = H + Drop(W_2 Drop(ReLU(W_1 LN(H))))
    scores = LN(H) E^T

Trained with the full cross-entropy it is the baseline to beat (arXiv 2309.07602); `loss.kind=bce`
or `gbce` in the experiment gives the original and gSASRec (arXiv 2308.07192).
"""

import dataclasses

import jax
from flax import nnx
from jaxtyping import PRNGKeyArray

from linseqrec.config_fields import ConfigError, Count, Rate
from linseqrec.events import Events
from linseqrec.layers.block import Block
from linseqrec.layers.request_time import request_layer
from linseqrec.layers.self_attention import SelfAttention
from linseqrec.layers.standard import (
    FeedForward,
    ItemEmbedding,
    PositionEmbedding,
    dropout,
    layer_norm,
    split_key,
)
from linseqrec.models.base import Dtype, Encoding, ModelConfig, NoState, SequenceModel


@dataclasses.dataclass(frozen=True)
class SASRecConfig(ModelConfig):
    """SASRec's hyperparameters.

    Attributes:
      width: D.
      heads: Attention heads; they divide the width.
      num_layers: Blocks.
      dropout: Rate on the embeddings, the attention's output and the feed-forward half.
      max_length: The longest row it can serve: positions are learned.
      dtype: Compute dtype; "auto" is bfloat16 on an accelerator (`ModelConfig.compute_dtype`).
    """

    width: Count = 64
    heads: Count = 1
    num_layers: Count = 2
    dropout: Rate = 0.2
    max_length: Count = 200
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

    def build(self, num_items: int, *, rngs: nnx.Rngs, request_time: bool = False) -> "SASRec":
        """Makes the model with fresh parameters; see `ModelConfig.build`."""
        return SASRec(self, num_items, request_time=request_time, rngs=rngs)


class SASRec(SequenceModel):
    """The model; see the module's docstring. It re-reads whole histories: it carries no state."""

    def __init__(
        self,
        config: SASRecConfig,
        num_items: int,
        *,
        request_time: bool = False,
        rngs: nnx.Rngs,
    ):
        self.config = config
        width, rate, dtype = config.width, config.dropout, config.compute_dtype

        def norm() -> nnx.LayerNorm:
            return layer_norm(width, epsilon=1e-8, dtype=dtype, rngs=rngs)

        def attention() -> SelfAttention:
            return SelfAttention(width, config.heads, dtype=dtype, rngs=rngs)

        def feed_forward() -> FeedForward:
            return FeedForward(width, width, rate, activation=jax.nn.relu, dtype=dtype, rngs=rngs)

        self.embedding = ItemEmbedding(num_items, width, dtype=dtype, rngs=rngs)
        self.positions = PositionEmbedding(config.max_length, width, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List(
            [
                Block(attention, feed_forward, norm=norm, rate=rate, name="attention")
                for _ in range(config.num_layers)
            ]
        )
        self.norm = norm()
        self.request_time = request_layer(request_time, width, dtype=dtype, rngs=rngs)

    def encode(
        self, events: Events, state: NoState, *, dropout_key: PRNGKeyArray | None
    ) -> Encoding:
        """Returns hidden states [B, T, D]; causal, segment by segment.

        Raises:
          ValueError: If the row is longer than `max_length`.
        """
        embedding_key, *block_keys = split_key(dropout_key, 1 + len(self.blocks))
        x = self.embedding(events.items) * self.config.width**0.5
        x = self.positions(x, events.positions)
        x = self.request_time.enter(x, events)
        x = dropout(x, self.config.dropout, embedding_key)
        ids = events.segment_ids
        for block, key in zip(self.blocks, block_keys, strict=True):
            x, _ = block(x, ids, (ids,), (), dropout_key=key)
        return Encoding(self.request_time.leave(self.norm(x), events), state=state)
