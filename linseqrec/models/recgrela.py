"""RecGRELA: gated rotary-enhanced linear attention with rank modulation (arXiv 2506.13315).

    H = LN(Drop(E[items]))
    per block:  H_3 = H + DropPath(RELA(LN(H)));  H' = H_3 + Drop(FFN(LN(H_3)))
    scores = H E^T

The block's attention half (gates, rotated linear attention, local branch) is `layers/rela.py`.
From the paper and its released code: everything under `causal=False`. Ours: the causal form, which
masks padding, trains on every position at once and streams; the `"convex"` selector.

The parameters by name (`models/weights.py` gets and sets them, and says how to turn PyTorch's),
with i the block from 0, kernels [in, out], each dense layer with a bias beside its kernel:

    embedding/table [N + 1, D]                      E; row 0 is the padding item
    norm/{scale,bias}                               LN over the embeddings
    blocks/i/attention_norm/{scale,bias}            LN before the attention half: H_g = LN(H)
    blocks/i/attention/gate/kernel [D, D]           W_1, the output gate G = SiLU(W_1 H_g + b_1)
    blocks/i/attention/input_gate/kernel [D, D]     W_2, X = W_2 H_g + b_2
    blocks/i/attention/query_key/kernel [D, 2D]     W_qk of X: q is columns 0..D-1, k the rest
    blocks/i/attention/shortcut/weight [4, D]       S = SiLU(conv(X)); row 3 is the current event
    blocks/i/attention/shortcut/bias [D]
    blocks/i/attention/output/kernel [D, D]         W_3
    blocks/i/feed_forward_norm/{scale,bias}         LN before the feed-forward half: LN(H_3)
    blocks/i/feed_forward/expand/kernel [D, 4D]     W_4
    blocks/i/feed_forward/contract/kernel [4D, D]   W_5

Switches add `positions/table` (learned positions), `attention/value/kernel` (value projection),
`attention/selector/kernel` (W_s of the convex selector) and `attention/key_taps` [2, D] (lookup;
row 1 is the current event).
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Int, PRNGKeyArray

from linseqrec.config_fields import ConfigError, Count, NotNegative, Positive, Rate, require
from linseqrec.events import Events, history_lengths
from linseqrec.layers.block import Block
from linseqrec.layers.rela import RELA, LookupRELA, RELAState, Selector
from linseqrec.layers.standard import (
    FeedForward,
    ItemEmbedding,
    NoPositions,
    PositionEmbedding,
    Sinusoids,
    dropout,
    layer_norm,
    split_key,
)
from linseqrec.layers.states import empty
from linseqrec.models.base import Dtype, Encoding, ModelConfig, SequenceModel, request_layer


@dataclasses.dataclass(frozen=True)
class RecGRELAConfig(ModelConfig):
    """RecGRELA's hyperparameters; the defaults are the published setting, in the causal form.

    Attributes:
      width: D.
      heads: Attention heads; they divide the width.
      num_layers: Blocks.
      dropout: Rate on the embeddings and in the feed-forward half.
      drop_path: Rate at which a segment skips a block's attention half.
      causal: True (ours) sums over the past only and trains on every position; False is the
        released model: bidirectional, padding not masked, one target per row.
      selector: How the two branches are joined (see `RELA`).
      gate: The output gate G.
      input_gate: The projection W_2; without it the normalised input is taken.
      shortcut: The local branch.
      positions: "rotary" (published); "none" (no rotation); "learned" or "absolute" (fixed
        sinusoids) are added to the embeddings in its stead.
      value_projection: Whether the values are projected once more (published: no).
      max_length: The longest row that learned positions can serve.
      denominator_events: Events over which the causal form's attention averages, whatever the
        history's length (ours, see `RELA`); None divides by the weights of the events so far. 200
        is the released form's row.
      lookup: Whether the causal form's heads start as "what followed this item before" (ours, see
        `LookupRELA`), for logs in which people repeat themselves; not with positions="rotary". One
        head of the full width finds single events best.
      epsilon: Added to the attention's denominator.
      norm_epsilon: Added to the variance in the layer norms.
      dtype: Compute dtype; "auto" is bfloat16 on an accelerator (`ModelConfig.compute_dtype`).
    """

    width: Count = 64
    heads: Count = 4
    num_layers: Count = 4
    dropout: Rate = 0.1
    drop_path: Rate = 0.1
    causal: bool = True
    selector: Selector = "silu"
    gate: bool = True
    input_gate: bool = True
    shortcut: bool = True
    positions: Literal["rotary", "none", "learned", "absolute"] = "rotary"
    value_projection: bool = False
    max_length: Count = 200
    denominator_events: Count | None = None
    lookup: bool = False
    epsilon: NotNegative = 1e-6
    norm_epsilon: Positive = 1e-12
    dtype: Dtype = "auto"

    reads_request_times = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads or self.width % 2:
            raise ConfigError(
                f"width {self.width} must be even and a multiple of heads {self.heads}"
            )
        require(
            self.positions != "rotary" or not self.causal or self.width % (2 * self.heads) == 0,
            "heads",
            self.heads,
            f"a divisor of {self.width // 2}, half the width: rotary positions turn pairs",
        )
        if self.selector == "convex" and not self.shortcut:
            raise ConfigError("selector 'convex' mixes in the shortcut: it needs shortcut=True")
        events = self.denominator_events
        require(
            events is None or self.causal,
            "denominator_events",
            events,
            "none without causal=True (the released form sums all slots of a row)",
        )
        require(
            not self.lookup or (self.causal and self.positions != "rotary"),
            "lookup",
            self.lookup,
            "False, or causal=True with other positions than 'rotary' (which blurs a lookup)",
        )

    @property
    def longest_row(self) -> int | None:
        """The most slots of a row that it reads; None for any number."""
        return self.max_length if self.positions == "learned" else None

    @property
    def deviation(self) -> float | None:
        """Standard deviation of fresh kernels and embeddings; None for `Dense`'s.

        Released: 0.02. A lookup takes it, too: beside `Dense`'s its readings are lost in the noise
        of the other layers.
        """
        return None if self.causal and not self.lookup else 0.02

    def build(self, num_items: int, *, rngs: nnx.Rngs, request_time: bool = False) -> "RecGRELA":
        """Makes the model with fresh parameters; see `ModelConfig.build`."""
        return RecGRELA(self, num_items, request_time=request_time, rngs=rngs)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RecGRELAState:
    """The past of each row's history, of a size that does not depend on its length.

    Attributes:
      layers: One `RELAState` a block.
      length: int32 [B], events so far: the position of the next one.
    """

    layers: list[RELAState]
    length: Int[Array, "B"]


class RecGRELA(SequenceModel):
    """The model; see the module's docstring."""

    def __init__(
        self,
        config: RecGRELAConfig,
        num_items: int,
        *,
        request_time: bool = False,
        rngs: nnx.Rngs,
    ):
        self.config = config
        width, dtype = config.width, config.compute_dtype
        fresh: dict[str, Any] = dict(deviation=config.deviation, dtype=dtype, rngs=rngs)

        def norm() -> nnx.LayerNorm:
            return layer_norm(width, epsilon=config.norm_epsilon, dtype=dtype, rngs=rngs)

        def attention() -> RELA:
            options: dict[str, Any] = dict(
                selector=config.selector,
                gate=config.gate,
                input_gate=config.input_gate,
                shortcut=config.shortcut,
                value_projection=config.value_projection,
                denominator_events=config.denominator_events,
                epsilon=config.epsilon,
                **fresh,
            )
            if config.lookup:
                return LookupRELA(width, config.heads, **options)
            rotation = config.positions == "rotary"
            return RELA(width, config.heads, causal=config.causal, rotation=rotation, **options)

        self.embedding = ItemEmbedding(num_items, width, **fresh)
        self.positions = {
            "learned": lambda: PositionEmbedding(config.max_length, width, **fresh),
            "absolute": lambda: Sinusoids(width),
        }.get(config.positions, NoPositions)()
        self.norm = norm()
        self.blocks = nnx.List(
            [
                Block(
                    norm(),
                    attention(),
                    norm(),
                    FeedForward(width, 4 * width, config.dropout, **fresh),
                    rate=config.dropout,
                    path_rate=config.drop_path,
                    name="attention",
                )
                for _ in range(config.num_layers)
            ]
        )
        self.request_time = request_layer(request_time, width, dtype=dtype, rngs=rngs)

    @property
    def carries_state(self) -> bool:
        """Whether it is the causal form: the released one sums over whole rows."""
        return self.config.causal

    def initial_state(self, batch_size: int) -> RecGRELAState:
        """The state before any event."""
        layers = [block.initial_state(batch_size) for block in self.blocks]
        return RecGRELAState(layers, empty(batch_size, dtype=np.int32))

    def encode(
        self, events: Events, state: RecGRELAState, *, dropout_key: PRNGKeyArray | None
    ) -> Encoding:
        """Returns hidden states [B, T, D], no auxiliary losses, and the state.

        The released form reads positions off the slots, and wants one right-padded history per row.
        In the causal form a carried history's positions go on from `state.length`.
        """
        embedding_key, *block_keys = split_key(dropout_key, 1 + len(self.blocks))
        segment_ids, positions = events.segment_ids, events.positions
        if not self.config.causal:
            # The released form takes every slot for an event, and the slot's number for a position.
            slots = jnp.arange(positions.shape[1])
            segment_ids, positions = None, jnp.broadcast_to(slots, positions.shape)
        x = self.positions(self.embedding(events.items), positions)
        x = self.norm(dropout(x, self.config.dropout, embedding_key))
        x = self.request_time.enter(x, events)
        mixer_inputs, layers = (segment_ids, positions), []
        for block, before, key in zip(self.blocks, state.layers, block_keys, strict=True):
            x, after = block(x, events.segment_ids, mixer_inputs, before, dropout_key=key)
            layers.append(after)
        state = RecGRELAState(layers, history_lengths(events, state.length))
        return Encoding(self.request_time.leave(x, events), state=state)
