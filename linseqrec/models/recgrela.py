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
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from linseqrec.config_checks import ConfigError, check_fields, require
from linseqrec.events import Events, history_lengths
from linseqrec.layers.dense import layer_norm
from linseqrec.layers.dropout import drop_path, dropout, split_key
from linseqrec.layers.embedding import ItemEmbedding
from linseqrec.layers.feed_forward import FeedForward
from linseqrec.layers.positions import PositionEmbedding, sinusoidal_positions
from linseqrec.layers.rela import RELA, RELAState, Selector
from linseqrec.layers.request_time import request_layer
from linseqrec.models.encoding import Encoding


@dataclasses.dataclass(frozen=True)
class RecGRELAConfig:
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
        `RELA`), for logs in which people repeat themselves. It needs positions="none". One head
        of the full width finds single events best.
      epsilon: Of the attention's denominator, and, `norm_epsilon`, of the layer norms.
      norm_epsilon: See `epsilon`.
      dtype: Compute dtype, "float32" or "bfloat16"; parameters are float32.
    """

    width: int = 64
    heads: int = 4
    num_layers: int = 4
    dropout: float = 0.1
    drop_path: float = 0.1
    causal: bool = True
    selector: Selector = "silu"
    gate: bool = True
    input_gate: bool = True
    shortcut: bool = True
    positions: Literal["rotary", "none", "learned", "absolute"] = "rotary"
    value_projection: bool = False
    max_length: int = 200
    denominator_events: int | None = None
    lookup: bool = False
    epsilon: float = 1e-6
    norm_epsilon: float = 1e-12
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        counts = ("width", "heads", "num_layers", "max_length")
        check_fields(self, counts=counts, rates=("dropout", "drop_path"))
        if self.width % self.heads or self.width % 2:
            raise ConfigError(
                f"width {self.width} must be even and a multiple of heads {self.heads}"
            )
        if self.selector == "convex" and not self.shortcut:
            raise ConfigError("selector 'convex' mixes in the shortcut: it needs shortcut=True")
        events = self.denominator_events
        require(
            events is None or (self.causal and events >= 1),
            "denominator_events",
            events,
            "None, or at least 1 with causal=True (the released form sums all slots of a row)",
        )
        require(
            not self.lookup or (self.causal and self.positions != "rotary"),
            "lookup",
            self.lookup,
            "False, or causal=True with positions='none' (the rotation blurs a lookup)",
        )

    @property
    def longest_row(self) -> int | None:
        """The most slots of a row that it reads; None for any number."""
        return self.max_length if self.positions == "learned" else None

    @property
    def deviation(self) -> float | None:
        """Standard deviation of fresh kernels and embeddings; None for `dense`'s.

        Released: 0.02. A lookup takes it, too: beside `dense`'s its readings are lost in the noise
        of the other layers (RESULTS.md).
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


class RecGRELA(nnx.Module):
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
        dtype, deviation = jnp.dtype(config.dtype), config.deviation
        self.embedding = ItemEmbedding(
            num_items, config.width, deviation=deviation, dtype=dtype, rngs=rngs
        )
        self.positions = (
            PositionEmbedding(
                config.max_length, config.width, deviation=deviation, dtype=dtype, rngs=rngs
            )
            if config.positions == "learned"
            else None
        )
        self.norm = layer_norm(config.width, epsilon=config.norm_epsilon, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.num_layers)])
        self.request_time = request_layer(request_time, config.width, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        events: Events,
        state: RecGRELAState | None = None,
        *,
        dropout_key: PRNGKeyArray | None = None,
    ) -> Encoding:
        """Encodes histories.

        Args:
          events: The batch, [B, T]. The released form reads positions off the slots, and wants one
            right-padded history a row.
          state: Where each row's first history stands; its events' positions go on from
            `state.length`. Causal form only.
          dropout_key: Randomness of dropout and DropPath; None is evaluation.

        Returns:
          Hidden states [B, T, D]; no auxiliary losses; the state (None unless causal).

        Raises:
          ValueError: If a state is given to the released form, which cannot stream.
        """
        if state is not None and not self.config.causal:
            raise ValueError("RecGRELA with causal=False reads whole rows: it carries no state")
        embedding_key, *block_keys = split_key(dropout_key, 1 + len(self.blocks))
        positions = (
            events.positions
            if self.config.causal
            else jnp.broadcast_to(jnp.arange(events.items.shape[1]), events.items.shape)
        )
        x = self.embedding(events.items)
        if self.positions is not None:
            x = x + self.positions(positions)
        elif self.config.positions == "absolute":
            x = x + sinusoidal_positions(positions, self.config.width).astype(x.dtype)
        x = self.norm(dropout(x, self.config.dropout, embedding_key))
        x = self.request_time.enter(x, events)
        states = []
        for index, (block, key) in enumerate(zip(self.blocks, block_keys, strict=True)):
            past = None if state is None else state.layers[index]
            x, after = block(x, events.segment_ids, positions, past, dropout_key=key)
            if after is not None:
                states.append(after)
        x = self.request_time.leave(x, events)
        if not self.config.causal:
            return Encoding(x, {}, None)
        length = history_lengths(events, None if state is None else state.length)
        return Encoding(x, {}, RecGRELAState(states, length))

    def item_table(self) -> Float[Array, "N+1 D"]:
        """The tied output table, float32; row 0 is padding."""
        return self.embedding.table[...]


class Block(nnx.Module):
    """One pre-norm block: RELA, then the feed-forward half."""

    def __init__(self, config: RecGRELAConfig, *, rngs: nnx.Rngs):
        width, dtype = config.width, jnp.dtype(config.dtype)
        self.config = config
        self.attention_norm = layer_norm(width, epsilon=config.norm_epsilon, dtype=dtype, rngs=rngs)
        self.attention = RELA(
            width,
            config.heads,
            causal=config.causal,
            selector=config.selector,
            gate=config.gate,
            input_gate=config.input_gate,
            shortcut=config.shortcut,
            rotation=config.positions == "rotary",
            value_projection=config.value_projection,
            denominator_events=config.denominator_events,
            lookup=config.lookup,
            epsilon=config.epsilon,
            deviation=config.deviation,
            dtype=dtype,
            rngs=rngs,
        )
        self.feed_forward_norm = layer_norm(
            width, epsilon=config.norm_epsilon, dtype=dtype, rngs=rngs
        )
        self.feed_forward = FeedForward(
            width,
            4 * width,
            config.dropout,
            deviation=config.deviation,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(
        self,
        x: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        state: RELAState | None,
        *,
        dropout_key: PRNGKeyArray | None,
    ) -> tuple[Float[Array, "B T D"], RELAState | None]:
        """Returns the block's output and its attention's state."""
        path_key, hidden_key, output_key = split_key(dropout_key, 3)
        mixed, state = self.attention(self.attention_norm(x), segment_ids, positions, state)
        x = x + drop_path(mixed, self.config.drop_path, segment_ids, path_key)
        fed = self.feed_forward(self.feed_forward_norm(x), dropout_key=hidden_key)
        return x + dropout(fed, self.config.dropout, output_key), state
