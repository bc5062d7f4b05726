"""HyTRec: a linear branch for the long past, a softmax branch for the last K events.

    x = Drop(√D E[items])
    short = blocks(x) of causal attention in windows that reach K events together, rotary positions
    long  = blocks(x) of [TADN × r, causal attention × s] repeated, "r:s" the ratio
    long_t <- long_{t-K} within the history; a learned vector where t < K
    f = σ(W_f [long; short] + b_f);  z = LN(f ⊙ short + (1 - f) ⊙ long);  scores = z E^T

    per block:  H = H + Drop(Mixer(RMSNorm(H)));  H = H + Drop(SwiGLU(RMSNorm(H)))

TADN is `layers/temporal_delta.py`, attention `layers/rotary_attention.py`. The decomposition is
exact at every position: for the prediction after event t, the short branch sees the events from
t - K + 1 on, and the long branch those up to t - K. So a row trains on all of its positions, and
the model streams: its state holds the layers' states and the last K outputs of the long branch.

Source: arXiv 2602.18283, of which the abstract was at hand and not the equations. From the paper:
long-term preferences in a linear branch and the K most recent events in a softmax branch; the long
branch's sparsely interleaved softmax layers, at best 3 to 1; that its linear layers decay over time
and gate the past against the fresh signal. Ours: every equation, that is the windows that keep the
short branch within K, the delay, the null vector, the fusion, the frame of blocks and norms, all of
TADN's gates, rotary positions, and the bound `attention_window` on the interleaved layers, without
which their cache would grow with the history.

The parameters by name, with i a block from 0, kernels [in, out]:

    embedding/table [N + 1, D]                           E; row 0 is the padding item
    {long,short}/i/mixer_norm/scale                      RMSNorm before the mixer
    {long,short}/i/feed_forward_norm/scale               RMSNorm before SwiGLU
    {long,short}/i/feed_forward/expand/kernel [D, 6D]    SwiGLU's two halves, and back
    {long,short}/i/feed_forward/contract/kernel [3D, D]
    TADN, long/i/mixer/:
      query_key_value/kernel [D, 3D]                     W_qkv: q, k, v in turn, heads within
      convolution/weight [4, 3D]                         row 3 is the current event
      decay_gate/kernel [D, H], step_bias [H]            W_α, b
      log_rate [H], log_horizon [H]                      a, and c = log T with T in days
      write_strength/kernel [D, H]                       W_β
      spike_gate/{kernel [2D, H], bias}                  W_s of [x; spike], b_s
      output_gate/kernel [D, D], norm/scale [D / H], output/kernel [D, D]
    attention, long/i/mixer/ and short/i/mixer/:
      query_key_value/{kernel [D, 3D], bias}, output/{kernel [D, D], bias}
      log_horizon [H]                                    log T in days, where it is timed
    null [D]                                             what the long branch says where t < K
    fusion/{kernel [2D, D], bias}                        W_f of [long; short], b_f
    norm/{scale,bias}                                    LN
"""

import dataclasses
import re
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from linseqrec.config_checks import ConfigError, check_fields
from linseqrec.events import Events, history_lengths
from linseqrec.layers.dense import dense, layer_norm, rms_norm
from linseqrec.layers.dropout import dropout, split_key
from linseqrec.layers.embedding import ItemEmbedding
from linseqrec.layers.request_time import request_layer
from linseqrec.layers.rotary_attention import RotaryAttention
from linseqrec.layers.swiglu import SwiGLU
from linseqrec.layers.temporal_delta import Gate, TemporalDeltaMixer
from linseqrec.layers.time_gaps import Time, gaps_in_days, gaps_taken
from linseqrec.models.encoding import Encoding
from linseqrec.ops.recent import Recent, delayed

# A block's: `TemporalDeltaState` of TADN, `Recent` of softmax attention, None before any event.
BlockState = Any


@dataclasses.dataclass(frozen=True)
class HyTRecConfig:
    """HyTRec's hyperparameters.

    Attributes:
      width: D.
      heads: Of every mixer; they divide the width into even parts.
      short_events: K, the events that the short branch sees and the long branch does not.
      short_layers: n_s, the short branch's blocks.
      num_layers: The long branch's blocks, a multiple of the ratio's sum.
      ratio: "r:s", TADN blocks to softmax blocks of the long branch, in that order: "3:1", "7:1",
        "1:1", "1:0", "0:1".
      attention_window: The most events, the current one included, that the long branch's softmax
        blocks see: full causal attention for histories up to it, and the size of their cache.
      branches: "both"; "short" or "long" alone, without fusion, for the ablation. The long branch
        alone stays K events behind; with `short_events=0` it is a plain stack over all events.
      gate: What TADN's write gate weighs (see `TemporalDeltaMixer`).
      time: What the decay takes for the days between events: "gaps" themselves; "positions" 1 at
        every event; "shuffled" the gaps of each history in another order (see `shuffled_gaps`),
        which takes whole histories and so carries no state; "none" nothing: there is no T.
      timed_attention: Whether the softmax blocks' weights fade with that time, too (see
        `RotaryAttention`). Without it the model knows of no time in the last K events.
      kernel: Taps of TADN's short convolution.
      feed_forward: Width of SwiGLU's hidden layer, in widths.
      dropout: Rate on the embeddings, the mixers' outputs and in the feed-forward halves.
      chunk_size: The most events that the memory takes at once; changes speed, not results.
      dtype: Compute dtype, "float32" or "bfloat16"; parameters are float32.
    """

    width: int = 64
    heads: int = 2
    short_events: int = 33
    short_layers: int = 2
    num_layers: int = 4
    ratio: str = "3:1"
    attention_window: int = 1024
    branches: Literal["both", "long", "short"] = "both"
    gate: Gate = "write"
    time: Time = "gaps"
    timed_attention: bool = False
    kernel: int = 4
    feed_forward: int = 3
    dropout: float = 0.1
    chunk_size: int = 64
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        counts = (
            "width heads short_layers num_layers attention_window kernel feed_forward chunk_size"
        )
        check_fields(self, counts=counts.split(), rates=("dropout",))
        if self.width % (2 * self.heads):
            raise ConfigError(
                f"width {self.width} must be a multiple of twice the heads, {self.heads}: rotary "
                "positions pair up a head's features"
            )
        period = len(self._period())
        if self.branches != "short" and self.num_layers % period:
            raise ConfigError(
                f"num_layers {self.num_layers} must be a multiple of {period}, the blocks of ratio "
                f"{self.ratio!r}"
            )
        if self.short_events < (0 if self.branches == "long" else 1):
            raise ConfigError(
                f"short_events {self.short_events} must be at least 1; 0 is for branches='long'"
            )
        if self.time == "none" and self.timed_attention:
            raise ConfigError("timed_attention=True fades nothing with time='none'")
        if self.time in ("shuffled", "positions") and not self.reads_time:
            raise ConfigError(
                f"time={self.time!r} changes nothing: with branches={self.branches!r} and "
                f"ratio={self.ratio!r} no block reads the time, unless timed_attention=True"
            )
        long, short = self.block_windows()
        if self.gate != "write" and None not in long:
            raise ConfigError(
                f"gate={self.gate!r} changes nothing: with branches={self.branches!r} and "
                f"ratio={self.ratio!r} there is no TADN block"
            )
        if self.timed_attention and not short and set(long) == {None}:
            raise ConfigError(
                "timed_attention=True changes nothing: with branches='long' and "
                f"ratio={self.ratio!r} there is no softmax block"
            )

    @property
    def delays(self) -> bool:
        """Whether the long branch stays behind, so that there is a time when it says nothing."""
        return self.branches != "short" and self.short_events > 0

    @property
    def reads_time(self) -> bool:
        """Whether any block's memory fades with the time between events."""
        long, _ = self.block_windows()
        return self.time != "none" and (None in long or self.timed_attention)

    @property
    def reads_timestamps(self) -> list[str]:
        """The setting by which what it reads is the log's own times, if it is."""
        own = self.reads_time and self.time != "positions"
        return [f"time={self.time!r}"] if own else []

    def _period(self) -> list[bool]:
        parts = re.fullmatch(r"(\d+):(\d+)", self.ratio)
        linear, softmax = map(int, parts.groups()) if parts else (0, 0)
        if linear + softmax == 0:
            raise ConfigError(f"ratio {self.ratio!r} must be two counts, not both 0, as in '3:1'")
        return [True] * linear + [False] * softmax

    def block_windows(self) -> tuple[list[int | None], list[int]]:
        """Of the long and the short branch's blocks, how many events each sees; None is TADN."""
        repeats = self.num_layers // len(self._period())
        long = [None if linear else self.attention_window for linear in self._period() * repeats]
        # Stacked, windows reach Σ (window - 1) events back: K - 1, so that no event between the
        # branches is seen by neither.
        each, over = divmod(self.short_events - 1, self.short_layers)
        short = [1 + each + (layer < over) for layer in range(self.short_layers)]
        if self.branches == "both":
            return long, short
        return (long, []) if self.branches == "long" else ([], short)

    def build(self, num_items: int, *, rngs: nnx.Rngs, request_time: bool = False) -> "HyTRec":
        """Makes the model with fresh parameters; see `ModelConfig.build`."""
        return HyTRec(self, num_items, request_time=request_time, rngs=rngs)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HyTRecState:
    """The past of each row's history, of a size that does not depend on its length.

    Attributes:
      long: One state a block of the long branch; empty without the branch.
      short: One state a block of the short branch; empty without the branch.
      delay: The last K outputs of the long branch, [B, K, D]; None without it.
      length: int32 [B], events so far: the position of the next one.
      last_timestamp: int32 [B], seconds; -1 where no event came before.
    """

    long: list[BlockState]
    short: list[BlockState]
    delay: Recent | None
    length: Int[Array, "B"]
    last_timestamp: Int[Array, "B"]


class HyTRec(nnx.Module):
    """The model; see the module's docstring."""

    def __init__(
        self,
        config: HyTRecConfig,
        num_items: int,
        *,
        request_time: bool = False,
        rngs: nnx.Rngs,
    ):
        self.config = config
        width, dtype = config.width, jnp.dtype(config.dtype)
        self.embedding = ItemEmbedding(num_items, width, dtype=dtype, rngs=rngs)
        long, short = config.block_windows()
        self.long = nnx.List([Block(config, window, rngs=rngs) for window in long])
        self.short = nnx.List([Block(config, window, rngs=rngs) for window in short])
        if config.delays:
            self.null = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (width,)))
        self.fusion = (
            dense(2 * width, width, dtype=dtype, rngs=rngs) if config.branches == "both" else None
        )
        self.norm = layer_norm(width, epsilon=1e-6, dtype=dtype, rngs=rngs)
        self.request_time = request_layer(request_time, width, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        events: Events,
        state: HyTRecState | None = None,
        *,
        dropout_key: PRNGKeyArray | None = None,
    ) -> Encoding:
        """Encodes histories.

        Args:
          events: The batch, [B, T].
          state: Where each row's first history stands; its events' positions go on from
            `state.length`.
          dropout_key: Randomness of dropout; None is evaluation.

        Returns:
          Hidden states [B, T, D]; no auxiliary losses; the state (None with shuffled gaps).

        Raises:
          ValueError: If a state is given to a model with shuffled gaps, which takes whole rows.
        """
        if state is not None and self.config.time == "shuffled":
            raise ValueError("HyTRec with time='shuffled' reads whole rows: it carries no state")
        embedding_key, long_key, short_key = split_key(dropout_key, 3)
        x = self.embedding(events.items) * self.config.width**0.5
        x = self.request_time.enter(x, events)
        x = dropout(x, self.config.dropout, embedding_key)
        gaps, last_timestamp = gaps_in_days(
            events.timestamps, events.segment_ids, None if state is None else state.last_timestamp
        )
        gaps = gaps_taken(self.config.time, gaps, events.segment_ids)
        long_past, short_past = (None, None) if state is None else (state.long, state.short)
        long, long_states = _through(self.long, x, events, gaps, long_past, long_key)
        short, short_states = _through(self.short, x, events, gaps, short_past, short_key)
        delay = None
        if self.config.delays:
            long, delay = delayed(
                long,
                self.config.short_events,
                self.null[...],
                segment_ids=events.segment_ids,
                recent=None if state is None else state.delay,
            )
        if self.fusion is not None:
            fusion = jax.nn.sigmoid(self.fusion(jnp.concatenate([long, short], axis=-1)))
            fused = fusion * short + (1 - fusion) * long
        else:
            fused = long if self.config.branches == "long" else short
        hidden = self.request_time.leave(self.norm(fused), events)
        if self.config.time == "shuffled":
            return Encoding(hidden, {}, None)
        length = history_lengths(events, None if state is None else state.length)
        state = HyTRecState(long_states, short_states, delay, length, last_timestamp)
        return Encoding(hidden, {}, state)

    def item_table(self) -> Float[Array, "N+1 D"]:
        """The tied output table, float32; row 0 is padding."""
        return self.embedding.table[...]


class Block(nnx.Module):
    """One pre-norm block: TADN (`window=None`) or softmax attention, then SwiGLU."""

    def __init__(self, config: HyTRecConfig, window: int | None, *, rngs: nnx.Rngs):
        width, dtype = config.width, jnp.dtype(config.dtype)
        self.rate = config.dropout
        self.mixer_norm = rms_norm(width, epsilon=1e-6, dtype=dtype, rngs=rngs)
        self.mixer = (
            TemporalDeltaMixer(
                width,
                config.heads,
                gate=config.gate,
                timed=config.time != "none",
                kernel=config.kernel,
                chunk_size=config.chunk_size,
                dtype=dtype,
                rngs=rngs,
            )
            if window is None
            else RotaryAttention(
                width,
                config.heads,
                window=window,
                timed=config.timed_attention,
                dtype=dtype,
                rngs=rngs,
            )
        )
        self.feed_forward_norm = rms_norm(width, epsilon=1e-6, dtype=dtype, rngs=rngs)
        self.feed_forward = SwiGLU(
            width, config.feed_forward * width, config.dropout, dtype=dtype, rngs=rngs
        )

    def __call__(
        self,
        x: Float[Array, "B T D"],
        events: Events,
        gaps: Float[Array, "B T"],
        state: BlockState,
        *,
        dropout_key: PRNGKeyArray | None,
    ) -> tuple[Float[Array, "B T D"], BlockState]:
        """Returns the block's output and its mixer's state."""
        mixer_key, hidden_key, output_key = split_key(dropout_key, 3)
        h, ids = self.mixer_norm(x), events.segment_ids
        if isinstance(self.mixer, TemporalDeltaMixer):
            mixed, state = self.mixer(h, ids, gaps, state)
        else:
            mixed, state = self.mixer(h, ids, events.positions, gaps, state)
        x = x + dropout(mixed, self.rate, mixer_key)
        fed = self.feed_forward(self.feed_forward_norm(x), dropout_key=hidden_key)
        return x + dropout(fed, self.rate, output_key), state


def _through(
    blocks: nnx.List,
    x: Float[Array, "B T D"],
    events: Events,
    gaps: Float[Array, "B T"],
    past: list[BlockState] | None,
    key: PRNGKeyArray | None,
) -> tuple[Float[Array, "B T D"], list[BlockState]]:
    """Takes the embeddings through a branch; returns its output and its blocks' states."""
    past = [None] * len(blocks) if past is None else past
    states = []
    for block, before, own in zip(blocks, past, split_key(key, len(blocks)), strict=True):
        x, after = block(x, events, gaps, before, dropout_key=own)
        states.append(after)
    return x, states
