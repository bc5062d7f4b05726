"""Gated DeltaNet: a pure stack of gated delta memories (arXiv 2412.06464), as a recommender.

    H = Drop(√D E[items])
    per block:  H = H + Drop(Mixer(RMSNorm(H)));  H = H + Drop(FFN(RMSNorm(H)))
    scores = RMSNorm(H) E^T

The mixer (`layers/gated_delta.py`) is the paper's. Ours: the frame of a recommender around it,
with a tied item table and a GELU feed-forward half. No positions: the memory knows the order.

The parameters by name, with i the block from 0, kernels [in, out]:

    embedding/table [N + 1, D]                           E; row 0 is the padding item
    blocks/i/{mixer_norm,feed_forward_norm}/scale        RMSNorm before the halves
    blocks/i/mixer/query_key_value/kernel [D, H (2K+V)]  W_qkv: q of all heads, then k, then v
    blocks/i/mixer/convolution/weight [4, H (2K+V)]      row 3 is the current event
    blocks/i/mixer/decay_gate/kernel [D, H]              W_α;  step_bias [H]: b;  log_rate [H]: a
    blocks/i/mixer/write_strength/kernel [D, H]          W_β
    blocks/i/mixer/output_gate/kernel [D, H V]           W_g;  norm/scale [V]: of a head's output
    blocks/i/mixer/output/kernel [H V, D]                W_o
    blocks/i/feed_forward/{expand,contract}/{kernel,bias}
    norm/scale                                           the last RMSNorm
"""

import dataclasses
from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from linseqrec.config_checks import check_fields
from linseqrec.events import Events
from linseqrec.layers.dense import rms_norm
from linseqrec.layers.dropout import dropout, split_key
from linseqrec.layers.embedding import ItemEmbedding
from linseqrec.layers.feed_forward import FeedForward
from linseqrec.layers.gated_delta import GatedDeltaMixer, GatedDeltaState
from linseqrec.layers.request_time import request_layer
from linseqrec.models.encoding import Encoding


@dataclasses.dataclass(frozen=True)
class GatedDeltaNetConfig:
    """Gated DeltaNet's hyperparameters.

    Attributes:
      width: D.
      heads: Memories a block.
      num_layers: Blocks.
      key_width: Width of a head's keys and queries.
      value_width: Width of a head's values.
      kernel: Taps of the short convolution.
      negative_eigenvalues: Whether writes reach up to β = 2.
      feed_forward: Width of the feed-forward half's hidden layer, in widths.
      dropout: Rate on the embeddings, the mixer's output and the feed-forward half.
      chunk_size: The most events that the memory takes at once; changes speed, not results.
      dtype: Compute dtype, "float32" or "bfloat16"; parameters are float32.
    """

    width: int = 64
    heads: int = 2
    num_layers: int = 4
    key_width: int = 32
    value_width: int = 32
    kernel: int = 4
    negative_eigenvalues: bool = False
    feed_forward: int = 4
    dropout: float = 0.1
    chunk_size: int = 64
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        counts = "width heads num_layers key_width value_width kernel feed_forward chunk_size"
        check_fields(self, counts=counts.split(), rates=("dropout",))

    @property
    def splits_time(self) -> bool:
        """True: only the convolution and the memory mix slots, and both support it."""
        return True

    def build(
        self, num_items: int, *, rngs: nnx.Rngs, request_time: bool = False
    ) -> "GatedDeltaNet":
        """Makes the model with fresh parameters; see `ModelConfig.build`."""
        return GatedDeltaNet(self, num_items, request_time=request_time, rngs=rngs)


class GatedDeltaNet(nnx.Module):
    """The model; see the module's docstring."""

    def __init__(
        self,
        config: GatedDeltaNetConfig,
        num_items: int,
        *,
        request_time: bool = False,
        rngs: nnx.Rngs,
    ):
        self.config = config
        dtype = jnp.dtype(config.dtype)
        self.embedding = ItemEmbedding(num_items, config.width, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.num_layers)])
        self.norm = rms_norm(config.width, epsilon=1e-6, dtype=dtype, rngs=rngs)
        self.request_time = request_layer(request_time, config.width, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        events: Events,
        state: list[GatedDeltaState] | None = None,
        *,
        dropout_key: PRNGKeyArray | None = None,
    ) -> Encoding:
        """Encodes histories.

        Args:
          events: The batch, [B, T].
          state: Where each row's first history stands, one state a block; None is no past.
          dropout_key: Randomness of dropout; None is evaluation.

        Returns:
          Hidden states [B, T, D]; no auxiliary losses; the state after each row's last history.
        """
        embedding_key, *block_keys = split_key(dropout_key, 1 + len(self.blocks))
        x = self.embedding(events.items) * self.config.width**0.5
        x = self.request_time.enter(x, events)
        x = dropout(x, self.config.dropout, embedding_key)
        past = [None] * len(self.blocks) if state is None else state
        states = []
        for block, before, key in zip(self.blocks, past, block_keys, strict=True):
            x, after = block(x, events.segment_ids, before, dropout_key=key)
            states.append(after)
        return Encoding(self.request_time.leave(self.norm(x), events), {}, states)

    def item_table(self) -> Float[Array, "N+1 D"]:
        """The tied output table, float32; row 0 is padding."""
        return self.embedding.table[...]


class Block(nnx.Module):
    """One pre-norm block: the gated delta memory, then the feed-forward half."""

    def __init__(self, config: GatedDeltaNetConfig, *, rngs: nnx.Rngs):
        width, dtype = config.width, jnp.dtype(config.dtype)
        self.rate = config.dropout
        self.mixer_norm = rms_norm(width, epsilon=1e-6, dtype=dtype, rngs=rngs)
        self.mixer = GatedDeltaMixer(
            width,
            config.heads,
            key_width=config.key_width,
            value_width=config.value_width,
            kernel=config.kernel,
            negative_eigenvalues=config.negative_eigenvalues,
            chunk_size=config.chunk_size,
            dtype=dtype,
            rngs=rngs,
        )
        self.feed_forward_norm = rms_norm(width, epsilon=1e-6, dtype=dtype, rngs=rngs)
        self.feed_forward = FeedForward(
            width, config.feed_forward * width, config.dropout, dtype=dtype, rngs=rngs
        )

    def __call__(
        self,
        x: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"],
        state: GatedDeltaState | None,
        *,
        dropout_key: PRNGKeyArray | None,
    ) -> tuple[Float[Array, "B T D"], GatedDeltaState]:
        """Returns the block's output and its memory's state."""
        mixer_key, hidden_key, output_key = split_key(dropout_key, 3)
        mixed, state = self.mixer(self.mixer_norm(x), segment_ids, state)
        x = x + dropout(mixed, self.rate, mixer_key)
        fed = self.feed_forward(self.feed_forward_norm(x), dropout_key=hidden_key)
        return x + dropout(fed, self.rate, output_key), state
