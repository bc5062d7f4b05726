"""FuXi-Linear: linear attention with channels of time and of position (arXiv 2602.23671).

    H = Drop(√D E[items] + P[positions])
    per block:  u, q, k, v = SiLU(W LN(H))
                A = u ⊙ [LN(retention(q, k, v)), LN(temporal(LN(H))), LN(positional(LN(H)))]
                H = H + W_o Drop(A);   H = H + SwiGLU(Drop(RMSNorm(H)))
    scores = LN(H) E^T,  or with a temperature τ  cos(H, E) / τ

The channels are `layers/fuxi_channels.py`, their memory `ops/decayed_linear_attention.py`: time is
linear in the row's length, and the state of a history has one size.

From the paper and its released code [P]: all equations but those named below, the norms without
parameters inside the blocks, and the settings for KuaiRand-27K and KuaiRec, whose histories are
long: periods from 2^10 to 2^31 seconds, a learned fading, and α and β in the temporal channel. The
released settings for ML-20M are periods from 1 to 16^7 seconds, γ = .5, α = 1 and β = 0. In the
released code scores are cosines over a temperature of .05 (`temperature=0.05`), and a request has
the time of the next event. Ours [O]:

  - If request times are hidden, a query of the temporal channel reads event t's own time. If they
    are known, it reads the request time, as released, and `layers/request_time.py` tells the model
    more of it.
  - Without a temperature, scores are dot products behind a LayerNorm, as in this library's other
    models.
  - Keys and values of the retention have the width of a head, D / H. The time between two events
    counts up to ten years.
  - Segments keep the histories of a packed row apart, and each history has a state.
  - Fresh item vectors have the deviation 1/√D, and the kernels of the channels' values 1/√inputs;
    the released ones .02 and 1/√(3 inputs).

The parameters by name, with i the block from 0, C the channels (3), P periods, kernels [in, out]:

    embedding/table [N + 1, D]                   E; row 0 is the padding item
    positions/table [max_length, D]              P
    phases/fading [P]                            γ = σ of it
    blocks/i/project/kernel [D, (C + 3) D]       W: u of all channels, then q, k and v
    blocks/i/retention/rate [H]
    blocks/i/temporal/value/kernel [D, D]        with {past,current} [2P]: α, β
    blocks/i/positional/value/kernel [D, D]      with {past,current} [1]: α, β
    blocks/i/positional/table [max_length, E]    e
    blocks/i/output/kernel [C D, D]              W_o
    blocks/i/feed_forward/expand/kernel [D, 2F]  SwiGLU's halves, and back
    blocks/i/feed_forward/contract/kernel [F, D]
    norm/{scale,bias}                            the last LayerNorm, without a temperature
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from linseqrec.config_fields import ConfigError, Count, Positive, Rate, require
from linseqrec.events import Events
from linseqrec.layers.fuxi_channels import (
    LONGEST_PERIOD,
    MixerInputs,
    NoPhases,
    PositionalChannel,
    Retention,
    TemporalChannel,
    TemporalPhases,
)
from linseqrec.layers.standard import (
    Dense,
    ItemEmbedding,
    PositionEmbedding,
    SwiGLU,
    dropout,
    layer_norm,
    rms_norm,
    score_norm,
    split_key,
    unit_length,
)
from linseqrec.layers.time_gaps import gaps_in_days, no_timestamp
from linseqrec.models.base import Dtype, Encoding, ModelConfig, SequenceModel, request_layer

_EPSILON = 1e-6
# Standard deviation of the blocks' fresh kernels. Beside `Dense`'s own, the released one is ahead
# by .019 NDCG@10 on the quick world after three epochs.
_DEVIATION = 0.02
# The retention's memory and those of the block's channels, by their names.
BlockState = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class FuXiLinearConfig(ModelConfig):
    """FuXi-Linear's hyperparameters.

    Defaults are as released for long histories, but for width, heads, dropout, temperature.

    Attributes:
      width: D; released: 128.
      heads: Heads of the retention; they divide the width. Released: 4, of width 32.
      num_layers: Blocks; released: 4.
      temporal: Whether blocks have the temporal channel.
      positional: Whether blocks have the positional channel.
      periods: P, periods of the temporal channel; twice as many divide the width.
      first_period: The shortest period, in seconds.
      period_ratio: Ratio of each period to the one before; the longest is at most 2^31 seconds.
      position_width: E, width of the positional channel's vectors; even.
      feed_forward: Width of the feed-forward half's hidden layer, in widths.
      dropout: Rate on the embeddings, before the output projection, and before SwiGLU. Released:
        0.5, and 0.2 on ML-20M.
      max_length: The longest row it can serve, since positions are learned.
      temperature: Scores are cosines over it; None for dot products. Released: 0.05.
      chunk_size: The most events that a memory takes at once; changes speed, not results.
      dtype: Compute dtype; "auto" is bfloat16 on an accelerator (`ModelConfig.compute_dtype`).
    """

    width: Count = 64
    heads: Count = 2
    num_layers: Count = 4
    temporal: bool = True
    positional: bool = True
    periods: Count = 8
    first_period: Count = 1024
    period_ratio: Count = 8
    position_width: Count = 32
    feed_forward: Count = 1
    dropout: Rate = 0.2
    max_length: Count = 200
    temperature: Positive | None = None
    chunk_size: Count = 64
    dtype: Dtype = "auto"

    reads_request_times = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads:
            raise ConfigError(f"width {self.width} must be a multiple of heads {self.heads}")
        if self.temporal and self.width % (2 * self.periods):
            raise ConfigError(
                f"width {self.width} must be a multiple of twice the periods {self.periods}"
            )
        even = self.position_width % 2 == 0
        require(even, "position_width", self.position_width, "even")
        longest = self.first_period * self.period_ratio ** (self.periods - 1)
        if self.temporal and longest > LONGEST_PERIOD:
            raise ConfigError(
                f"the longest period, first_period * period_ratio ** (periods - 1), is {longest} "
                f"seconds: it must be at most {LONGEST_PERIOD}"
            )

    @property
    def longest_row(self) -> int:
        """The most slots of a row that it reads."""
        return self.max_length

    @property
    def reads_timestamps(self) -> list[str]:
        """The setting by which it reads the log's times."""
        return ["temporal=True"] if self.temporal else []

    def build(self, num_items: int, *, rngs: nnx.Rngs, request_time: bool = False) -> "FuXiLinear":
        """Makes the model with fresh parameters; see `ModelConfig.build`."""
        return FuXiLinear(self, num_items, request_time=request_time, rngs=rngs)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FuXiLinearState:
    """The past of each row's history, of a size that does not depend on its length.

    Attributes:
      blocks: One dictionary a block: the memory of each channel by name.
      last_timestamp: int32 [B], the last event's time in seconds; -1 before any.
    """

    blocks: list[BlockState]
    last_timestamp: Int[Array, "B"]


class FuXiLinearBlock(nnx.Module):
    """One block; see the module's docstring."""

    def __init__(self, config: FuXiLinearConfig, *, dtype: DTypeLike, rngs: nnx.Rngs):
        width, self.rate = config.width, config.dropout
        chunked: dict[str, Any] = dict(chunk_size=config.chunk_size, rngs=rngs)
        self.input_norm, self.read_norm = (
            layer_norm(width, epsilon=_EPSILON, affine=False, dtype=dtype, rngs=rngs)
            for _ in range(2)
        )
        self.channels = tuple(name for name in ("temporal", "positional") if getattr(config, name))
        outputs = width * (1 + len(self.channels))
        self.cuts = tuple(outputs + width * index for index in range(3))
        fresh: dict[str, Any] = dict(deviation=_DEVIATION, dtype=dtype, rngs=rngs)
        self.project = Dense(width, outputs + 3 * width, bias=False, **fresh)
        self.retention = Retention(width, config.heads, **chunked)
        if config.temporal:
            self.temporal = TemporalChannel(width, config.periods, dtype=dtype, **chunked)
        if config.positional:
            self.positional = PositionalChannel(
                width, config.max_length, config.position_width, dtype=dtype, **chunked
            )
        self.output = Dense(outputs, width, bias=False, **fresh)
        self.feed_forward_norm = rms_norm(
            width, epsilon=_EPSILON, affine=False, dtype=dtype, rngs=rngs
        )
        self.feed_forward = SwiGLU(width, config.feed_forward * width, 0.0, **fresh)

    def initial_state(self, batch_size: int) -> BlockState:
        """The memories before any event."""
        names = ["retention", *self.channels]
        return {name: getattr(self, name).initial_state(batch_size) for name in names}

    def __call__(
        self,
        x: Float[Array, "B T D"],
        inputs: MixerInputs,
        state: BlockState,
        *,
        dropout_key: PRNGKeyArray | None,
    ) -> tuple[Float[Array, "B T D"], BlockState]:
        """Takes a row's events through the block; and the memories after its last segment."""
        output_key, feed_key = split_key(dropout_key, 2)
        normed = self.input_norm(x)
        projected = jax.nn.silu(self.project(normed))
        gate, query, key, value = jnp.split(projected, self.cuts, axis=-1)
        read, memory = self.retention(query, key, value, inputs, state["retention"])
        reads, after = [self.read_norm(read)], {"retention": memory}
        for name in self.channels:
            read, after[name] = getattr(self, name)(normed, inputs, state[name])
            reads.append(self.read_norm(read))
        mixed = gate * jnp.concatenate(reads, axis=-1)
        x = x + self.output(dropout(mixed, self.rate, output_key))
        fed = dropout(self.feed_forward_norm(x), self.rate, feed_key)
        return x + self.feed_forward(fed), after


class FuXiLinear(SequenceModel):
    """The model; see the module's docstring."""

    def __init__(
        self,
        config: FuXiLinearConfig,
        num_items: int,
        *,
        request_time: bool = False,
        rngs: nnx.Rngs,
    ):
        self.config = config
        width, dtype = config.width, config.compute_dtype
        self.embedding = ItemEmbedding(num_items, width, dtype=dtype, rngs=rngs)
        self.positions = PositionEmbedding(config.max_length, width, dtype=dtype, rngs=rngs)
        self.phases = (
            TemporalPhases(
                config.periods, first=config.first_period, ratio=config.period_ratio, rngs=rngs
            )
            if config.temporal
            else NoPhases()
        )
        self.blocks = nnx.List(
            [FuXiLinearBlock(config, dtype=dtype, rngs=rngs) for _ in range(config.num_layers)]
        )
        self.norm = score_norm(width, config.temperature, dtype=dtype, rngs=rngs)
        self.request_time = request_layer(request_time, width, dtype=dtype, rngs=rngs)

    def initial_state(self, batch_size: int) -> FuXiLinearState:
        """The state before any event."""
        blocks = [block.initial_state(batch_size) for block in self.blocks]
        return FuXiLinearState(blocks, no_timestamp(batch_size))

    def item_table(self) -> Float[Array, "N1 D"]:
        """The output table, float32: items' vectors, of unit length where scores are cosines."""
        table = super().item_table()
        return table if self.config.temperature is None else unit_length(table)

    def encode(
        self, events: Events, state: FuXiLinearState, *, dropout_key: PRNGKeyArray | None
    ) -> Encoding:
        """Returns hidden states [B, T, D], no auxiliary losses, and the state.

        Raises:
          ValueError: If the row is longer than `max_length`.
        """
        events, ids = self.request_time.visible_events(events), events.segment_ids
        embedding_key, *block_keys = split_key(dropout_key, 1 + len(self.blocks))
        x = self.embedding(events.items) * self.config.width**0.5
        x = self.positions(x, events.positions)
        x = self.request_time.enter(x, events)
        x = dropout(x, self.config.dropout, embedding_key)

        gaps, last_timestamp = gaps_in_days(events.timestamps, ids, state.last_timestamp)
        inputs, after = MixerInputs(ids, events.positions, self.phases(events, gaps)), []
        for block, before, key in zip(self.blocks, state.blocks, block_keys, strict=True):
            x, memories = block(x, inputs, before, dropout_key=key)
            after.append(memories)
        hidden = self.request_time.leave(self.norm(x), events)
        return Encoding(hidden, state=FuXiLinearState(after, last_timestamp))
