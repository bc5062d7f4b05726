"""LinRec: L2-normalised linear attention for long histories (arXiv 2411.01537), made causal.

    H = Drop(LN(E[items] + P[positions]))
    per block:  H = LN(H + Drop(Attention(H)));  H = LN(H + Drop(FFN(H)))
    scores = H E^T

Marked [P]: the paper's abstract and its released code. Marked [O]: ours. We could not read the
paper's equations.

- [P] ELU features of queries and keys, both normalised by their L2 length; no softmax and no
  denominator. Around it SASRec as RecBole has it: learned positions, post norms (ε = 1e-12), GELU,
  all kernels and tables from N(0, .02²).
- [O] A query has length 1 / √K, and each feature of the keys the length 1 / √N over the N events.
  The released code divides a key by the length of its own features and leaves out 1 / √N, so that
  its sums grow with the history.
- [O] Causal: the released code sums over all slots of a window, later ones and padding included,
  and trains on one target per row. Here event t reads the events up to t, and N and the lengths of
  the keys' features are those of these events (`LinRecAttention`).

The parameters by name, with i the block from 0, kernels [in, out], each with a bias beside it:

    embedding/table [N + 1, D]                          E; row 0 is the padding item
    positions/table [max_length, D]                     P
    norm/{scale,bias}                                   LN over the embeddings
    blocks/i/attention/query_key_value/kernel [D, 3 D]  query, key, value, side by side
    blocks/i/attention/output/kernel [D, D]             dense
    blocks/i/{attention_norm,feed_forward_norm}/{scale,bias}
    blocks/i/feed_forward/expand/kernel [D, F D]        dense_1
    blocks/i/feed_forward/contract/kernel [F D, D]      dense_2
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from linseqrec.config_fields import ConfigError, Count, Positive, Rate
from linseqrec.events import Events
from linseqrec.layers.block import PostNormBlock
from linseqrec.layers.standard import (
    Dense,
    FeedForward,
    ItemEmbedding,
    PositionEmbedding,
    dropout,
    layer_norm,
    split_key,
    unit_length,
)
from linseqrec.layers.states import MixerTrace, empty, past_or_none, record
from linseqrec.models.base import Dtype, Encoding, ModelConfig, SequenceModel, request_layer
from linseqrec.ops.linear_attention import LinearAttentionState, linear_attention
from linseqrec.ops.running_mean import running_mean

# Of fresh weights, as released.
_DEVIATION = 0.02


@dataclasses.dataclass(frozen=True)
class LinRecConfig(ModelConfig):
    """LinRec's hyperparameters; the defaults are the released settings, halved in width.

    Attributes:
      width: D.
      heads: Attention heads; they divide the width.
      num_layers: Blocks.
      feed_forward: Width of the feed-forward half's hidden layer, in widths.
      dropout: Rate on the embeddings and on the output of each half.
      max_length: The longest row it can serve: positions are learned.
      table_deviation: Standard deviation of the fresh item vectors. With `own_items` set it to
        about 1 / √D, for vectors of unit length: from the released ones, the scores diverge.
      dtype: Compute dtype; "auto" is bfloat16 on an accelerator (`ModelConfig.compute_dtype`).
    """

    width: Count = 64
    heads: Count = 4
    num_layers: Count = 2
    feed_forward: Count = 2
    dropout: Rate = 0.2
    max_length: Count = 200
    table_deviation: Positive = _DEVIATION
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

    def build(self, num_items: int, *, rngs: nnx.Rngs, request_time: bool = False) -> "LinRec":
        """Makes the model with fresh parameters; see `ModelConfig.build`."""
        return LinRec(self, num_items, request_time=request_time, rngs=rngs)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LinRecState:
    """What an attention carries from one call to the next; float32.

    Attributes:
      attention: The sum of key valueᵀ, [B, H, K, V], and the number of events, [B, H, 1].
      squares: The sum of the keys' squared features, [B, 1, 1, D], and the number of events.
    """

    attention: LinearAttentionState
    squares: LinearAttentionState


class LinRecAttention(nnx.Module):
    """L2-normalised linear attention (arXiv 2411.01537) over the events so far.

        q, k = ELU(W_q x + b_q), ELU(W_k x + b_k);  v = W_v x + b_v
        r_tj = √(mean_{n≤t} k_nj²)
        o_t = mean_{n≤t} Σ_j (q_tj / (√K |q_t|)) (k_nj / r_tj) v_n              per head
        y = W_o o + b_o

    Feature j of a key is divided by √N times its length over the N events: together, by N times its
    root mean square.
    """

    def __init__(self, width: int, heads: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.width, self.heads = width, heads
        self.query_key_value = Dense(width, 3 * width, deviation=_DEVIATION, dtype=dtype, rngs=rngs)
        self.output = Dense(width, width, deviation=_DEVIATION, dtype=dtype, rngs=rngs)

    def initial_state(self, batch_size: int) -> LinRecState:
        """The state before any event."""
        head = self.width // self.heads
        return LinRecState(
            LinearAttentionState(
                empty(batch_size, self.heads, head, head), empty(batch_size, self.heads, 1)
            ),
            LinearAttentionState(empty(batch_size, 1, 1, self.width), empty(batch_size, 1, 1)),
        )

    def __call__(
        self, x: Float[Array, "B T D"], segment_ids: Int[Array, "B T"], state: LinRecState
    ) -> tuple[Float[Array, "B T D"], LinRecState]:
        """Mixes a row's events over time.

        Args:
          x: Inputs.
          segment_ids: One id from 1 per history; 0 is padding.
          state: The past of each row's first segment.

        Returns:
          The mixed values, and the state after each row's last segment.
        """
        query, key, value = jnp.split(self.query_key_value(x), 3, axis=-1)
        query, key = jax.nn.elu(query), jax.nn.elu(key)
        square, squares = running_mean(
            jnp.square(key.astype(jnp.float32)),
            segment_ids=segment_ids,
            initial_state=past_or_none(state.squares),
        )
        shape = (*x.shape[:2], self.heads, self.width // self.heads)
        query, key, value, square = (part.reshape(shape) for part in (query, key, value, square))
        # Each event has lengths of its own, over the events up to it. The sum over keys is the same
        # for all events, so that the query takes the division.
        query = unit_length(query) * jax.lax.rsqrt(shape[-1] * (square + 1e-12))
        ones = jnp.ones_like(value[..., :1])
        output, attention = linear_attention(
            query.astype(x.dtype),
            key,
            value,
            denominator_query=ones,
            denominator_key=ones,
            segment_ids=segment_ids,
            epsilon=0.0,
            initial_state=past_or_none(state.attention),
        )
        record(self, lambda: MixerTrace(key, attention.key_value))
        return self.output(output.reshape(x.shape)), LinRecState(attention, squares)


class LinRec(SequenceModel):
    """The model; see the module's docstring."""

    def __init__(
        self,
        config: LinRecConfig,
        num_items: int,
        *,
        request_time: bool = False,
        rngs: nnx.Rngs,
    ):
        self.config = config
        width, dtype = config.width, config.compute_dtype
        hidden = config.feed_forward * width

        def norm() -> nnx.LayerNorm:
            return layer_norm(width, epsilon=1e-12, dtype=dtype, rngs=rngs)

        self.embedding = ItemEmbedding(
            num_items, width, deviation=config.table_deviation, dtype=dtype, rngs=rngs
        )
        self.positions = PositionEmbedding(
            config.max_length, width, deviation=_DEVIATION, dtype=dtype, rngs=rngs
        )
        self.norm = norm()
        self.blocks = nnx.List(
            [
                PostNormBlock(
                    norm(),
                    LinRecAttention(width, config.heads, dtype=dtype, rngs=rngs),
                    norm(),
                    # The released half has no dropout inside.
                    FeedForward(width, hidden, 0.0, deviation=_DEVIATION, dtype=dtype, rngs=rngs),
                    rate=config.dropout,
                    name="attention",
                )
                for _ in range(config.num_layers)
            ]
        )
        self.request_time = request_layer(request_time, width, dtype=dtype, rngs=rngs)

    def initial_state(self, batch_size: int) -> list[LinRecState]:
        """One state per block."""
        return [block.initial_state(batch_size) for block in self.blocks]

    def encode(
        self, events: Events, state: list[LinRecState], *, dropout_key: PRNGKeyArray | None
    ) -> Encoding:
        """Returns hidden states [B, T, D], no auxiliary losses, and one state per block.

        Raises:
          ValueError: If the row is longer than `max_length`.
        """
        embedding_key, *block_keys = split_key(dropout_key, 1 + len(self.blocks))
        x = self.norm(self.positions(self.embedding(events.items), events.positions))
        x = self.request_time.enter(dropout(x, self.config.dropout, embedding_key), events)
        ids, after = events.segment_ids, []
        for block, before, key in zip(self.blocks, state, block_keys, strict=True):
            x, moved = block(x, ids, (ids,), before, dropout_key=key)
            after.append(moved)
        return Encoding(self.request_time.leave(x, events), state=after)
