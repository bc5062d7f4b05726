"""SASRec: self-attentive sequential recommendation (arXiv 1808.09781), in its pre-norm form.

    H = Drop(√D E[items] + P[positions])
    per block:  H = H + Drop(Attention(LN(H)));  H = H + Drop(W_2 Drop(ReLU(W_1 LN(H))))
    scores = LN(H) E^T

Trained with the full cross-entropy it is the baseline to beat (arXiv 2309.07602); `loss.kind=bce`
or `gbce` in the experiment gives the original and gSASRec (arXiv 2308.07192).
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from linseqrec.config_fields import ConfigError, Count, Rate
from linseqrec.events import Events
from linseqrec.layers.block import Block
from linseqrec.layers.standard import (
    Dense,
    FeedForward,
    ItemEmbedding,
    PositionEmbedding,
    dropout,
    layer_norm,
    split_key,
)
from linseqrec.models.base import (
    Dtype,
    Encoding,
    ModelConfig,
    NoState,
    SequenceModel,
    request_layer,
)
from linseqrec.ops.softmax_attention import softmax_attention


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

        self.embedding = ItemEmbedding(num_items, width, dtype=dtype, rngs=rngs)
        self.positions = PositionEmbedding(config.max_length, width, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List(
            [
                Block(
                    norm(),
                    SelfAttention(width, config.heads, dtype=dtype, rngs=rngs),
                    norm(),
                    FeedForward(width, width, rate, activation=jax.nn.relu, dtype=dtype, rngs=rngs),
                    rate=rate,
                    name="attention",
                )
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
