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

from flax import nnx
from jaxtyping import PRNGKeyArray

from linseqrec.config_fields import Count, Rate
from linseqrec.events import Events
from linseqrec.layers.block import Block
from linseqrec.layers.gated_delta import GatedDeltaMixer, GatedDeltaState
from linseqrec.layers.standard import FeedForward, ItemEmbedding, dropout, rms_norm, split_key
from linseqrec.models.base import Dtype, Encoding, ModelConfig, SequenceModel, request_layer


@dataclasses.dataclass(frozen=True)
class GatedDeltaNetConfig(ModelConfig):
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
      dtype: Compute dtype; "auto" is bfloat16 on an accelerator (`ModelConfig.compute_dtype`).
    """

    width: Count = 64
    heads: Count = 2
    num_layers: Count = 4
    key_width: Count = 32
    value_width: Count = 32
    kernel: Count = 4
    negative_eigenvalues: bool = False
    feed_forward: Count = 4
    dropout: Rate = 0.1
    chunk_size: Count = 64
    dtype: Dtype = "auto"

    reads_request_times = True

    @property
    def splits_time(self) -> bool:
        """True: only the convolution and the memory mix slots, and both support it."""
        return True

    def build(
        self, num_items: int, *, rngs: nnx.Rngs, request_time: bool = False
    ) -> "GatedDeltaNet":
        """Makes the model with fresh parameters; see `ModelConfig.build`."""
        return GatedDeltaNet(self, num_items, request_time=request_time, rngs=rngs)


class GatedDeltaNet(SequenceModel):
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
        width, dtype = config.width, config.compute_dtype
        hidden = config.feed_forward * width

        def norm() -> nnx.RMSNorm:
            return rms_norm(width, epsilon=1e-6, dtype=dtype, rngs=rngs)

        self.embedding = ItemEmbedding(num_items, width, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List(
            [
                Block(
                    norm(),
                    GatedDeltaMixer(
                        width,
                        config.heads,
                        key_width=config.key_width,
                        value_width=config.value_width,
                        kernel=config.kernel,
                        negative_eigenvalues=config.negative_eigenvalues,
                        chunk_size=config.chunk_size,
                        dtype=dtype,
                        rngs=rngs,
                    ),
                    norm(),
                    FeedForward(width, hidden, config.dropout, dtype=dtype, rngs=rngs),
                    rate=config.dropout,
                )
                for _ in range(config.num_layers)
            ]
        )
        self.norm = norm()
        self.request_time = request_layer(request_time, width, dtype=dtype, rngs=rngs)

    def initial_state(self, batch_size: int) -> list[GatedDeltaState]:
        """One state per block."""
        return [block.initial_state(batch_size) for block in self.blocks]

    def encode(
        self, events: Events, state: list[GatedDeltaState], *, dropout_key: PRNGKeyArray | None
    ) -> Encoding:
        """Returns hidden states [B, T, D], no auxiliary losses, and one state per block."""
        embedding_key, *block_keys = split_key(dropout_key, 1 + len(self.blocks))
        x = self.embedding(events.items) * self.config.width**0.5
        x = self.request_time.enter(x, events)
        x = dropout(x, self.config.dropout, embedding_key)
        ids, after = events.segment_ids, []
        for block, before, key in zip(self.blocks, state, block_keys, strict=True):
            x, carried = block(x, ids, (ids,), before, dropout_key=key)
            after.append(carried)
        return Encoding(self.request_time.leave(self.norm(x), events), state=after)
