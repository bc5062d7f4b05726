"""SASRec: self-attentive sequential recommendation (arXiv 1808.09781), in its pre-norm form.

    H = Drop(√D E[items] + P[positions])
    per block:  H = H + Drop(Attention(LN(H)));  H = H + Drop(W_2 Drop(ReLU(W_1 LN(H))))
    scores = LN(H) E^T

Trained with the full cross-entropy it is the baseline to beat (arXiv 2309.07602); `loss.kind=bce`
or `gbce` in the experiment gives the original and gSASRec (arXiv 2308.07192).
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from linseqrec.config_checks import ConfigError, check_fields
from linseqrec.events import Events
from linseqrec.layers.dense import layer_norm
from linseqrec.layers.dropout import dropout, split_key
from linseqrec.layers.embedding import ItemEmbedding
from linseqrec.layers.feed_forward import FeedForward
from linseqrec.layers.positions import PositionEmbedding
from linseqrec.layers.request_time import request_layer
from linseqrec.layers.self_attention import SelfAttention
from linseqrec.models.encoding import Encoding


@dataclasses.dataclass(frozen=True)
class SASRecConfig:
    """SASRec's hyperparameters.

    Attributes:
      width: D.
      heads: Attention heads; they divide the width.
      num_layers: Blocks.
      dropout: Rate on the embeddings, the attention's output and the feed-forward half.
      max_length: The longest row it can serve: positions are learned.
      dtype: Compute dtype, "float32" or "bfloat16"; parameters are float32.
    """

    width: int = 64
    heads: int = 1
    num_layers: int = 2
    dropout: float = 0.2
    max_length: int = 200
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        counts = ("width", "heads", "num_layers", "max_length")
        check_fields(self, counts=counts, rates=("dropout",))
        if self.width % self.heads:
            raise ConfigError(f"width {self.width} must be a multiple of heads {self.heads}")

    @property
    def longest_row(self) -> int:
        """The most slots of a row that it reads."""
        return self.max_length

    def build(self, num_items: int, *, rngs: nnx.Rngs, request_time: bool = False) -> "SASRec":
        """Makes the model with fresh parameters; see `ModelConfig.build`."""
        return SASRec(self, num_items, request_time=request_time, rngs=rngs)


class SASRec(nnx.Module):
    """The model; see the module's docstring."""

    def __init__(
        self,
        config: SASRecConfig,
        num_items: int,
        *,
        request_time: bool = False,
        rngs: nnx.Rngs,
    ):
        self.config = config
        dtype = jnp.dtype(config.dtype)
        self.embedding = ItemEmbedding(num_items, config.width, dtype=dtype, rngs=rngs)
        self.positions = PositionEmbedding(config.max_length, config.width, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.num_layers)])
        self.norm = layer_norm(config.width, epsilon=1e-8, dtype=dtype, rngs=rngs)
        self.request_time = request_layer(request_time, config.width, dtype=dtype, rngs=rngs)

    def __call__(
        self, events: Events, state: Any = None, *, dropout_key: PRNGKeyArray | None = None
    ) -> Encoding:
        """Encodes histories [B, T]; causal, segment by segment.

        Raises:
          ValueError: If a state is given (SASRec re-reads the whole history), or the row is longer
            than `max_length`.
        """
        if state is not None:
            raise ValueError("SASRec carries no state: give it the whole history")
        embedding_key, *block_keys = split_key(dropout_key, 1 + len(self.blocks))
        x = self.embedding(events.items) * self.config.width**0.5 + self.positions(events.positions)
        x = self.request_time.enter(x, events)
        x = dropout(x, self.config.dropout, embedding_key)
        for block, key in zip(self.blocks, block_keys, strict=True):
            x = block(x, events.segment_ids, dropout_key=key)
        return Encoding(self.request_time.leave(self.norm(x), events), {}, None)

    def item_table(self) -> Float[Array, "N+1 D"]:
        """The tied output table, float32; row 0 is padding."""
        return self.embedding.table[...]


class Block(nnx.Module):
    """One pre-norm block: causal self-attention, then the feed-forward half."""

    def __init__(self, config: SASRecConfig, *, rngs: nnx.Rngs):
        width, dtype = config.width, jnp.dtype(config.dtype)
        self.rate = config.dropout
        self.attention_norm = layer_norm(width, epsilon=1e-8, dtype=dtype, rngs=rngs)
        self.attention = SelfAttention(width, config.heads, dtype=dtype, rngs=rngs)
        self.feed_forward_norm = layer_norm(width, epsilon=1e-8, dtype=dtype, rngs=rngs)
        self.feed_forward = FeedForward(
            width, width, config.dropout, activation=jax.nn.relu, dtype=dtype, rngs=rngs
        )

    def __call__(
        self,
        x: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"],
        *,
        dropout_key: PRNGKeyArray | None,
    ) -> Float[Array, "B T D"]:
        """Returns the block's output."""
        attention_key, hidden_key, output_key = split_key(dropout_key, 3)
        mixed = self.attention(self.attention_norm(x), segment_ids)
        x = x + dropout(mixed, self.rate, attention_key)
        fed = self.feed_forward(self.feed_forward_norm(x), dropout_key=hidden_key)
        return x + dropout(fed, self.rate, output_key)
