"""HyTRec: a linear branch for the long past, a softmax branch for the last K events.

    x = Drop(√D E[items])
    short = blocks(x) of causal attention in windows that reach K events together, with rotary
            positions, or with short convolutions that make them lookups
    long  = blocks(x) of [TADN × r, causal attention × s] repeated, "r:s" the ratio
    f = σ(W_f [long; short] + b_f);  z = LN(f ⊙ short + (1 - f) ⊙ long);  scores = z E^T

    per block:  H = H + Drop(Mixer(RMSNorm(H)));  H = H + Drop(SwiGLU(RMSNorm(H)))

TADN is `layers/tadn.py`, attention `layers/window_attention.py`. For the prediction after
event t, the short branch sees the events from t - K + 1 on. At every position the long branch
remembers exactly the events up to t - K. The field `question` says which query reads this memory:

    "delayed"  the query of event t - K: the branch gives its own output of K events ago,
                   long_t <- long_{t-K} within the history; a learned vector where t < K
    "present"  the query of event t, in each layer. The memory of a TADN layer holds events up to
               t - K, faded to now; softmax layers see keys up to t - K. Of the last K events the
               branch reads two things only: event t, by the residual, and the W - 1 events before
               it, by the convolution of each layer that has one.
    "short"    the query of the short branch. The long branch runs without delay. One more TADN
               layer, without a residual, holds its outputs up to t - K:
                   long <- Drop(TADN(RMSNorm(long), question RMSNorm(short)))
               Its query is made of the short branch's outputs at event t and the W - 1 before it.

With "present" and "short", the fusion reads RMSNorm(long) and RMSNorm(short). A row trains on all
of its positions, and the model streams: its state holds the layers' states and what the long branch
has not yet taken of the last K events.

Source: the abstract of arXiv 2602.18283; we could not read its equations. From the abstract: a
linear branch for long-term preferences and a softmax branch for the K most recent events; softmax
layers between the linear layers of the long branch, at best one to three; a decay over time and a
gate that weighs the past against the current signal. Ours: every equation. This includes the
windows of the short branch, the delays, the null vector, the fusion, blocks and norms, TADN's gates
and rotary positions. `attention_window` is ours too: without it the cache of the softmax layers
would grow with the history.

The parameters by name, with i a block from 0, kernels [in, out]:

    embedding/table [N + 1, D]                           E; row 0 is the padding item
    {long,short}/i/mixer_norm/scale                      RMSNorm before the mixer
    {long,short}/i/feed_forward_norm/scale               RMSNorm before SwiGLU
    {long,short}/i/feed_forward/expand/kernel [D, 6D]    SwiGLU's two halves, and back
    {long,short}/i/feed_forward/contract/kernel [3D, D]
    TADN, long/i/mixer/:
      query_key_value/kernel [D, H (2K+V)]               W_qkv: q, k, v in turn, heads within
      convolution/weight [4, H (2K+V)]                   row 3 is the current event
      decay_gate/kernel [D, H], step_bias [H]            W_α, b
      log_rate [H], log_horizon [H]                      a, and c = log T with T in days
      write_strength/kernel [D, H]                       W_β
      spike_gate/{kernel [2D, H], bias}                  W_s of [x; spike], b_s
      output_gate/kernel [D, H V], norm/scale [V], output/kernel [H V, D]
    attention, long/i/mixer/ and short/i/mixer/:
      query_key_value/{kernel [D, 3D], bias}, output/{kernel [D, D], bias}
      or, without biases, convolution/weight [4, 3D]     `attention_convolution`
      log_horizon [H]                                    log T in days, where it is timed
    null [D]                                             "delayed": the long branch where t < K
    reading/{memory_norm,question_norm}/scale            "short": RMSNorm of the layer's two inputs
    reading/mixer/                                       its TADN, as above
    {long,short}_norm/scale                              not "delayed": RMSNorm before the fusion
    fusion/{kernel [2D, D], bias}                        W_f of [long; short], b_f
    norm/{scale,bias}                                    LN
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from linseqrec.config_fields import ConfigError, Count, CountOrZero, Rate
from linseqrec.events import Events, history_lengths
from linseqrec.layers.block import Block
from linseqrec.layers.standard import (
    Gate,
    Identity,
    ItemEmbedding,
    SwiGLU,
    dropout,
    layer_norm,
    rms_norm,
    split_key,
)
from linseqrec.layers.states import PartState, Stateless, empty, empty_recent, past_or_none
from linseqrec.layers.tadn import TADN, GateKind, TADNState
from linseqrec.layers.time_gaps import (
    Clock,
    DaysSince,
    NoAge,
    Time,
    gaps_in_days,
    gaps_taken,
    no_timestamp,
    waits_in_days,
)
from linseqrec.layers.window_attention import TimedWindowAttention, WindowAttention
from linseqrec.models.base import Dtype, Encoding, ModelConfig, SequenceModel, request_layer
from linseqrec.ops.recent import Recent, delayed

# A block's state: `TADNState` of TADN, `WindowState` of softmax attention.
BlockState = Any

Question = Literal["delayed", "present", "short"]


@dataclasses.dataclass(frozen=True)
class HyTRecConfig(ModelConfig):
    """HyTRec's hyperparameters.

    Attributes:
      width: D.
      heads: Heads of every mixer; they divide the width into even parts.
      short_events: K, the events that the short branch sees and the long branch's memory does not.
      short_layers: n_s, the short branch's blocks.
      num_layers: The long branch's blocks, a multiple of the ratio's sum.
      ratio: "r:s", TADN blocks to softmax blocks of the long branch, in that order: "3:1", "7:1",
        "1:1", "1:0", "0:1".
      attention_window: The most events, the last one included, that the long branch's softmax
        blocks see: full causal attention for histories up to it, and the size of their cache.
      question: What the long branch is asked, of its events up to t - K: "delayed", the question of
        event t - K; "present", that of event t, in each layer; "short", the short branch's output,
        in one more layer that reads the long branch (see the module's docstring).
      branches: "both"; "short" or "long" alone, without fusion, for the ablation. Alone, too, the
        long branch is asked by `question`; with `short_events=0` it is a plain stack over all
        events, whatever the question.
      gate: What TADN's write gate weighs (see `TADN`).
      time: The days that the decay reads at an event: "gaps", those since the event before, and on
        to a known request time; "positions", 1; "shuffled", the gaps of the history in another
        order (see `shuffled_gaps`): needs whole histories, so that no state is carried; "none": no
        decay with time (no T).
      timed_attention: Whether the softmax blocks' weights fade with that time, too (see
        `TimedWindowAttention`). Without it the model knows of no time in the last K events.
      attention_convolution: Whether the softmax blocks' queries, keys and values go through a short
        convolution as TADN's do, and start as a lookup, in place of rotary positions (see
        `WindowAttention`). A short branch's windows are then shorter by what the taps reach.
      key_width: Width of a TADN head's keys and queries; 0 for the width over the heads.
      value_width: Width of a TADN head's values; 0 for the width over the heads.
      kernel: Taps of the short convolutions.
      feed_forward: Width of SwiGLU's hidden layer, in widths.
      dropout: Rate on the embeddings, the mixers' outputs and in the feed-forward halves.
      chunk_size: The most events that the memory takes at once; changes speed, not results.
      dtype: Compute dtype; "auto" is bfloat16 on an accelerator (`ModelConfig.compute_dtype`).
    """

    width: Count = 64
    heads: Count = 2
    short_events: CountOrZero = 33
    short_layers: Count = 2
    num_layers: Count = 4
    ratio: str = "3:1"
    attention_window: Count = 1024
    question: Question = "present"
    branches: Literal["both", "long", "short"] = "both"
    gate: GateKind = "write"
    time: Time = "gaps"
    timed_attention: bool = False
    attention_convolution: bool = False
    key_width: CountOrZero = 0
    value_width: CountOrZero = 0
    kernel: Count = 4
    feed_forward: Count = 3
    dropout: Rate = 0.1
    chunk_size: Count = 64
    dtype: Dtype = "auto"

    reads_request_times = True

    def __post_init__(self) -> None:
        super().__post_init__()
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
        if self.short_events == 0 and self.branches != "long":
            raise ConfigError(
                f"short_events {self.short_events} must be at least 1; 0 is for branches='long'"
            )
        least = 1 + self.short_layers * (self.kernel - 1)
        if self.attention_convolution and self.branches != "long" and self.short_events < least:
            raise ConfigError(
                f"short_events {self.short_events} must be at least {least}, which the taps of the "
                "short branch's convolutions reach"
            )
        if self.branches == "long" and self.question == "short" and self.short_events:
            raise ConfigError(
                "question='short' needs the short branch, which branches='long' has not: set "
                "short_events=0, or another question"
            )

    @property
    def answers_late(self) -> bool:
        """Whether the long branch's output is delayed, so that at first it says nothing."""
        return self.question == "delayed" and self.branches != "short" and self.short_events > 0

    @property
    def delay(self) -> int:
        """By how many events the memory in each of the long branch's layers is late."""
        return self.short_events if self.question == "present" else 0

    @property
    def reads_long(self) -> bool:
        """Whether there is a layer in which the short branch asks the long one."""
        return self.question == "short" and self.branches == "both"

    @property
    def timed(self) -> bool:
        """Whether the weights of the softmax blocks fade with time."""
        return self.timed_attention and self.time != "none"

    @property
    def reads_time(self) -> bool:
        """Whether a layer's memory or its softmax weights fade with the time between events."""
        long, _ = self.block_windows()
        return self.time != "none" and (None in long or self.reads_long or self.timed_attention)

    @property
    def reads_age(self) -> bool:
        """Whether a late memory fades with the time that it is late."""
        long, _ = self.block_windows()
        return self.time != "none" and (self.reads_long or (self.delay > 0 and None in long))

    @property
    def reads_timestamps(self) -> list[str]:
        """The setting by which it reads the log's own times; [] if it reads none."""
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
        # Stacked, windows and taps reach K - 1 events back, so that no event between the branches
        # is seen by neither.
        each, over = divmod(self.short_events - 1, self.short_layers)
        taps = self.kernel - 1 if self.attention_convolution else 0
        short = [1 + each + (layer < over) - taps for layer in range(self.short_layers)]
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
      long: One state per block of the long branch; empty without the branch.
      short: One state per block of the short branch; empty without the branch.
      reading: State of the layer in which the short branch asks; () without it.
      delay: The last K outputs of the long branch, [B, K, D], where its answer is late; else ().
      gaps: The last K gaps in days, [B, K], where a late memory fades; else ().
      length: int32 [B], events so far: the position of the next one.
      last_timestamp: int32 [B], seconds; -1 where no event came before.
    """

    long: list[BlockState]
    short: list[BlockState]
    reading: PartState
    delay: PartState
    gaps: PartState
    length: Int[Array, "B"]
    last_timestamp: Int[Array, "B"]


class HyTRec(SequenceModel):
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
        width, dtype = config.width, config.compute_dtype
        both = config.branches == "both"

        def norm() -> nnx.RMSNorm:
            return rms_norm(width, epsilon=1e-6, dtype=dtype, rngs=rngs)

        self.embedding = ItemEmbedding(num_items, width, dtype=dtype, rngs=rngs)
        long, short = config.block_windows()
        self.long = nnx.List([_block(config, window, config.delay, rngs=rngs) for window in long])
        self.short = nnx.List([_block(config, window, 0, rngs=rngs) for window in short])
        self.age = DaysSince(config.short_events) if config.reads_age else NoAge()
        self.null: Any = _null_vector(width, rngs=rngs) if config.answers_late else None
        self.delay = Late(config) if config.answers_late else InTime()
        self.reading = Reading(config, rngs=rngs) if config.reads_long else NoReading()
        normed = both and config.question != "delayed"
        self.long_norm = norm() if normed else Identity()
        self.short_norm = norm() if normed else Identity()
        self.fusion = (
            Fusion(2 * width, width, dtype=dtype, rngs=rngs) if both else OneBranch(config.branches)
        )
        self.norm = layer_norm(width, epsilon=1e-6, dtype=dtype, rngs=rngs)
        self.request_time = request_layer(request_time, width, dtype=dtype, rngs=rngs)

    @property
    def carries_state(self) -> bool:
        """Whether its gaps are in order: shuffled ones take whole rows."""
        return self.config.time != "shuffled"

    def initial_state(self, batch_size: int) -> HyTRecState:
        """The state before any event."""
        return HyTRecState(
            [block.initial_state(batch_size) for block in self.long],
            [block.initial_state(batch_size) for block in self.short],
            self.reading.initial_state(batch_size),
            self.delay.initial_state(batch_size),
            self.age.initial_state(batch_size),
            empty(batch_size, dtype=np.int32),
            no_timestamp(batch_size),
        )

    def encode(
        self, events: Events, state: HyTRecState, *, dropout_key: PRNGKeyArray | None
    ) -> Encoding:
        """Returns hidden states [B, T, D], no auxiliary losses, and the state.

        The positions of a carried history go on from `state.length`.
        """
        events, ids = self.request_time.visible_events(events), events.segment_ids
        embedding_key, long_key, short_key, reading_key = split_key(dropout_key, 4)
        x = self.embedding(events.items) * self.config.width**0.5
        x = self.request_time.enter(x, events)
        x = dropout(x, self.config.dropout, embedding_key)

        gaps, last_timestamp = gaps_in_days(events.timestamps, ids, state.last_timestamp)
        gaps = gaps_taken(self.config.time, gaps, ids)
        age, last_gaps = self.age(gaps, ids, state.gaps)
        wait = waits_in_days(events) if self.config.time == "gaps" else None
        clock = Clock(ids, events.positions, gaps, age, wait)

        long, long_states = _through(self.long, x, clock, state.long, long_key)
        short, short_states = _through(self.short, x, clock, state.short, short_key)
        long, delay = self.delay(long, self.null, ids, state.delay)
        long, reading = self.reading(long, short, clock, state.reading, dropout_key=reading_key)
        fused = self.fusion(self.long_norm(long), self.short_norm(short))
        hidden = self.request_time.leave(self.norm(fused), events)
        length = history_lengths(events, state.length)
        after = HyTRecState(
            long_states, short_states, reading, delay, last_gaps, length, last_timestamp
        )
        return Encoding(hidden, state=after)


class Fusion(Gate):
    """σ(W_f [long; short] + b_f), the share of the short branch."""

    def __call__(  # type: ignore[override]
        self, long: Float[Array, "B T D"], short: Float[Array, "B T D"]
    ) -> Float[Array, "B T D"]:
        """The two branches fused."""
        share = jax.nn.sigmoid(super().__call__(jnp.concatenate([long, short], axis=-1)))
        return share * short + (1 - share) * long


class OneBranch(nnx.Module):
    """Stands for `Fusion` in a model of one branch."""

    def __init__(self, branch: str):
        self.takes_long = branch == "long"

    def __call__(
        self, long: Float[Array, "B T D"], short: Float[Array, "B T D"]
    ) -> Float[Array, "B T D"]:
        """The branch."""
        return long if self.takes_long else short


class Late(nnx.Module):
    """The question "delayed": the long branch's output of K events ago."""

    def __init__(self, config: HyTRecConfig):
        self.events, self.width = config.short_events, config.width

    def initial_state(self, batch_size: int) -> Recent:
        """The outputs before any event."""
        return empty_recent(batch_size, empty(batch_size, self.events, self.width))

    def __call__(
        self,
        long: Float[Array, "B T D"],
        null: nnx.Param,
        segment_ids: Int[Array, "B T"],
        state: Recent,
    ) -> tuple[Float[Array, "B T D"], Recent]:
        """The output, the null vector where t < K, and the last K outputs."""
        past = past_or_none(state)
        return delayed(long, self.events, null[...], segment_ids=segment_ids, recent=past)


class InTime(Stateless):
    """Stands for `Late` where the long branch's own output is not delayed."""

    def __call__(
        self,
        long: Float[Array, "B T D"],
        null: None,
        segment_ids: Int[Array, "B T"],
        state: tuple[()],
    ) -> tuple[Float[Array, "B T D"], tuple[()]]:
        """The output as it is."""
        del null, segment_ids
        return long, state


class Reading(nnx.Module):
    """The layer in which the short branch asks a memory of the long branch's states up to t - K."""

    def __init__(self, config: HyTRecConfig, *, rngs: nnx.Rngs):
        self.rate, dtype = config.dropout, config.compute_dtype
        self.memory_norm = rms_norm(config.width, epsilon=1e-6, dtype=dtype, rngs=rngs)
        self.question_norm = rms_norm(config.width, epsilon=1e-6, dtype=dtype, rngs=rngs)
        self.mixer = _mixer(config, None, config.short_events, rngs=rngs)

    def initial_state(self, batch_size: int) -> TADNState:
        """The memory before any event."""
        return self.mixer.initial_state(batch_size)

    def __call__(
        self,
        long: Float[Array, "B T D"],
        short: Float[Array, "B T D"],
        clock: Clock,
        state: TADNState,
        *,
        dropout_key: PRNGKeyArray | None,
    ) -> tuple[Float[Array, "B T D"], TADNState]:
        """Returns what the short branch reads, 0 where t < K, and the mixer's state."""
        question = self.question_norm(short)
        mixed, state = self.mixer(self.memory_norm(long), clock, state, question=question)
        return dropout(mixed, self.rate, dropout_key), state


class NoReading(Stateless):
    """Stands for `Reading` where the long branch answers itself."""

    def __call__(
        self,
        long: Float[Array, "B T D"],
        short: Float[Array, "B T D"],
        clock: Clock,
        state: tuple[()],
        *,
        dropout_key: PRNGKeyArray | None,
    ) -> tuple[Float[Array, "B T D"], tuple[()]]:
        """Returns the long branch."""
        del short, clock, dropout_key
        return long, state


def _block(config: HyTRecConfig, window: int | None, delay: int, *, rngs: nnx.Rngs) -> Block:
    """A block of TADN (`window=None`) or softmax attention, then SwiGLU."""
    width, rate, dtype = config.width, config.dropout, config.compute_dtype

    def norm() -> nnx.RMSNorm:
        return rms_norm(width, epsilon=1e-6, dtype=dtype, rngs=rngs)

    return Block(
        norm(),
        _mixer(config, window, delay, rngs=rngs),
        norm(),
        SwiGLU(width, config.feed_forward * width, rate, dtype=dtype, rngs=rngs),
        rate=rate,
    )


def _mixer(config: HyTRecConfig, window: int | None, delay: int, *, rngs: nnx.Rngs) -> Any:
    dtype = config.compute_dtype
    if window is not None:
        attention = TimedWindowAttention if config.timed else WindowAttention
        return attention(
            config.width,
            config.heads,
            window=window,
            behind=delay,
            kernel=config.kernel if config.attention_convolution else None,
            dtype=dtype,
            rngs=rngs,
        )
    return TADN(
        config.width,
        config.heads,
        key_width=config.key_width or config.width // config.heads,
        value_width=config.value_width or config.width // config.heads,
        gate=config.gate,
        timed=config.time != "none",
        delay=delay,
        kernel=config.kernel,
        chunk_size=config.chunk_size,
        dtype=dtype,
        rngs=rngs,
    )


def _null_vector(width: int, *, rngs: nnx.Rngs) -> nnx.Param:
    return nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (width,)))


def _through(
    blocks: Sequence[Any],
    x: Float[Array, "B T D"],
    clock: Clock,
    states: list[BlockState],
    key: PRNGKeyArray | None,
) -> tuple[Float[Array, "B T D"], list[BlockState]]:
    """Takes the embeddings through a branch; returns its output and its blocks' states."""
    after = []
    for block, state, own in zip(blocks, states, split_key(key, len(blocks)), strict=True):
        x, state = block(x, clock.segment_ids, (clock,), state, dropout_key=own)
        after.append(state)
    return x, after
