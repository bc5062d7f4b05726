"""SinkRec: memory-conditioned gated delta networks (arXiv 2606.09888).

In a linear model, recurring semantics come to fill the state and bias later reads: the "semantic
state sink". SinkRec keeps recurring patterns in a memory of their own, and uses the state for what
this memory does not cover.

    E = √D E[items];  X = Drop(E)
    m, n, ρ = ConditionalMemory(Drop(E));  m = Drop(m);  n = Drop(n)     once, at a rate of its own
    for r = 1..R, with one block's parameters:                           ℓ, W_gv zero at first
        X = X + ℓ_r
        X = X + σ(⟨N_m(W_gk m), N_x(X)⟩ / √D) W_gv m                     reinjection
        X = X + Drop(MemoryAttention(N(X), n))
        X = X + Drop(TDGD(N(X), Δ, φ, m, ρ))
        X = X + Drop(SwiGLU(N(X)))
    scores = N(X) E[·]ᵀ;  loss = L_pred + 0.1 L_vq + 0.1 L_rec           N: RMS norms

[P] From the paper's abstract: the semantic state sink; a hybrid, looped block with shared
parameters; a conditional memory of contiguous and dilated windows, residually quantised, reinjected
and shown to the attention as keys and values; a gated delta network with temporal addressing and
decay whose writing and reading the memory purifies; the three losses.
[O] Ours, since we could not read the paper's equations: every equation above and in
`layers/{conditional_memory,memory_attention,tdgd,time_gaps}.py`, all sizes
and initial values, how dead codes are replaced, and the frame of a recommender (tied table, norms,
dropout). Positions are not encoded: the recurrence and the short convolutions know the order, the
gaps the time.

The parameters by name, with i the block from 0 (one where it is shared), kernels [in, out]:

    embedding/table [N + 1, D]                       E; row 0 is the padding item
    memory/encoders/s/{kernel [w D, D/2], bias}      W_1, b_1 of window s, current event first
    memory/projections/s/{kernel [D/2, D/2], bias}   W_2, b_2;  memory/norms/s/{scale,bias}: its LN
    memory/decoders/s/{kernel [D/2, w D], bias}      W_d, b_d: the reconstruction
    memory/codebooks [S, L, K, D/2]                  memory/usage [S, L, K]: shares, a buffer
    memory/types [S L, D/2]                          of the slots n, windows outermost
    memory/output/kernel [S D/2, D]                  W_m
    gap_features/projection/kernel [16, F]           W_φ
    loops [R, D]                                     ℓ
    blocks/i/reinjection/{gate_key,value}/kernel [D, D]  W_gk, W_gv; {key,input}_norm: N_m, N_x
    blocks/i/attention/query_key_value/kernel [D, 3D], convolution/weight [4, 3D],
        memory_key_value/kernel [D/2, 2D], output/kernel [D, D]
    blocks/i/mixer/{query_key_value,convolution,decay_gate,write_strength,output_gate,
        log_rate,step_bias,norm,output}              as in `layers/gated_delta.py`
    blocks/i/mixer/address/kernel [F, 2 H K]         U_q, then U_k;  log_horizon [H]: log T
    blocks/i/mixer/memory_key/kernel [D, H K]        W_mk
    blocks/i/mixer/coverage_gate/kernel [2D, H]      W_c;  coverage_weights [2, H]: w_1, w_2
    blocks/i/mixer/removal_gate/kernel [2D, H]       W_λ;  {coverage,removal}_bias [H]: b_c, b_λ
    blocks/i/feed_forward/{expand,contract}/kernel   SwiGLU; {attention,mixer,feed_forward}_norm
    norm/scale                                       the last N
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from linseqrec.config_fields import ConfigError, Count, NotNegative, Rate, require
from linseqrec.events import Events
from linseqrec.layers.block import Block
from linseqrec.layers.conditional_memory import ConditionalMemory, MemoryReading, NoMemory
from linseqrec.layers.gated_delta import GatedDeltaState
from linseqrec.layers.memory_attention import MemoryAttention
from linseqrec.layers.standard import (
    Dense,
    Gate,
    ItemEmbedding,
    SwiGLU,
    dropout,
    rms_norm,
    split_key,
)
from linseqrec.layers.states import PartState
from linseqrec.layers.tdgd import TDGD, WriteGate
from linseqrec.layers.time_gaps import (
    GapFeatures,
    NoGapFeatures,
    gaps_in_days,
    no_timestamp,
    waits_in_days,
)
from linseqrec.layers.window_attention import WindowState
from linseqrec.models.base import Dtype, Encoding, ModelConfig, SequenceModel, request_layer


@dataclasses.dataclass(frozen=True)
class SinkRecConfig(ModelConfig):
    """SinkRec's hyperparameters; each ablation arm is a value of one of them.

    Attributes:
      width: D, even.
      heads: Heads of the attention (they divide the width) and of the recurrence.
      loops: R, passes through the block.
      shared: Whether the passes share one block; else each has its own.
      key_width: Width of a recurrent head's keys and queries.
      value_width: Width of a recurrent head's values.
      kernel: Taps of the short convolutions.
      attention_window: Events that the softmax attention sees.
      attention_convolution: Whether its queries, keys and values go through a short convolution as
        the recurrence's do. Without it the attention itself knows no order, only what the memory's
        windows and an earlier pass's recurrence put into its input.
      feed_forward: Width of the feed-forward half's hidden layer, in widths.
      memory: The conditional memory; without it, nothing below that reads it.
      reinjection: Whether the memory vector is added to the block's input.
      memory_key_values: Whether the attention sees the memory's slots.
      memory_window: w, events in a window of the memory.
      dilations: Slots between a window's events: (1,) is contiguous windows only, (2, 4) dilated
        only.
      levels: L, codes per window.
      codes: K, codes in a codebook.
      codebook: "learned", or "frozen" as it was drawn.
      write_gate: What suppresses writes: "memory"; "input", a gate of the same place that does not
        see the memory; "none".
      read_removal: Whether what the state answers to the memory's key is removed.
      temporal_addressing: Whether gaps turn queries and keys.
      temporal_decay: Whether gaps decay the state.
      gap_features: Width of φ.
      quantization_weight: Of L_vq in the loss.
      reconstruction_weight: Of L_rec in the loss; 0 builds no decoder.
      dropout: Rate on the embeddings and every branch of the block but the reinjection.
      memory_dropout: Rate on the embeddings that the memory reads, and on its vectors and slots.
        Its windows of several events can learn a small log by heart.
      chunk_size: The most events that the recurrence takes at once; changes speed, not results.
      dtype: Compute dtype; "auto" is bfloat16 on an accelerator (`ModelConfig.compute_dtype`).
        Quantisation is float32.
    """

    width: Count = 64
    heads: Count = 2
    loops: Count = 2
    shared: bool = True
    key_width: Count = 32
    value_width: Count = 32
    kernel: Count = 4
    attention_window: Count = 128
    attention_convolution: bool = True
    feed_forward: Count = 4
    memory: bool = True
    reinjection: bool = True
    memory_key_values: bool = True
    memory_window: Count = 4
    dilations: tuple[Count, ...] = (1, 2, 4)
    levels: Count = 3
    codes: Count = 256
    codebook: Literal["learned", "frozen"] = "learned"
    write_gate: WriteGate = "memory"
    read_removal: bool = True
    temporal_addressing: bool = True
    temporal_decay: bool = True
    gap_features: Count = 16
    quantization_weight: NotNegative = 0.1
    reconstruction_weight: NotNegative = 0.1
    dropout: Rate = 0.1
    memory_dropout: Rate = 0.0
    chunk_size: Count = 64
    dtype: Dtype = "auto"

    reads_request_times = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads or self.width % 2:
            raise ConfigError(
                f"width {self.width} must be even and a multiple of heads {self.heads}"
            )
        dilations = self.dilations
        distinct = 0 < len(dilations) == len(set(dilations))
        require(distinct, "dilations", dilations, "one or more different whole numbers")
        if self.memory_window == 1 and dilations != (1,):
            raise ConfigError(
                f"dilations {dilations} are the same window, the event itself, with "
                "memory_window=1: they must be (1,)"
            )

    @property
    def reads_timestamps(self) -> list[str]:
        """The settings by which it reads the log's times."""
        fields = ("temporal_addressing", "temporal_decay")
        return [f"{name}=True" for name in fields if getattr(self, name)]

    def uses(self, name: str) -> int:
        """How often an event goes through a parameter: a shared block's in every pass."""
        return self.loops if self.shared and "blocks/" in name else 1

    def build(self, num_items: int, *, rngs: nnx.Rngs, request_time: bool = False) -> "SinkRec":
        """Makes the model with fresh parameters; see `ModelConfig.build`."""
        return SinkRec(self, num_items, request_time=request_time, rngs=rngs)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LoopState:
    """What one pass through the block carries."""

    attention: WindowState
    mixer: GatedDeltaState


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SinkRecState:
    """The past of each row's history, of a size that does not depend on its length.

    Attributes:
      loops: One state per loop.
      embeddings: The last events' embeddings, for the memory's windows; () without memory.
      last_timestamp: int32 [B], the last event's time in seconds; -1 before any.
    """

    loops: list[LoopState]
    embeddings: PartState
    last_timestamp: Int[Array, "B"]


class SinkRec(SequenceModel):
    """The model; see the module's docstring."""

    def __init__(
        self,
        config: SinkRecConfig,
        num_items: int,
        *,
        request_time: bool = False,
        rngs: nnx.Rngs,
    ):
        self.config = config
        width, dtype = config.width, config.compute_dtype
        self.embedding = ItemEmbedding(num_items, width, dtype=dtype, rngs=rngs)
        self.memory = (
            ConditionalMemory(
                width,
                window=config.memory_window,
                dilations=config.dilations,
                levels=config.levels,
                codes=config.codes,
                frozen=config.codebook == "frozen",
                decoder=config.reconstruction_weight > 0,
                dtype=dtype,
                rngs=rngs,
            )
            if config.memory
            else NoMemory()
        )
        self.gap_features = (
            GapFeatures(config.gap_features, dtype=dtype, rngs=rngs)
            if config.temporal_addressing
            else NoGapFeatures()
        )
        self.loops = nnx.Param(jnp.zeros((config.loops, width), jnp.float32))
        blocks = 1 if config.shared else config.loops
        self.blocks = nnx.List([SinkRecBlock(config, rngs=rngs) for _ in range(blocks)])
        self.norm = rms_norm(width, epsilon=1e-6, dtype=dtype, rngs=rngs)
        self.request_time = request_layer(request_time, width, dtype=dtype, rngs=rngs)

    def initial_state(self, batch_size: int) -> SinkRecState:
        """The state before any event."""
        return SinkRecState(
            [self._block(loop).initial_state(batch_size) for loop in range(self.config.loops)],
            self.memory.initial_state(batch_size),
            no_timestamp(batch_size),
        )

    def encode(
        self, events: Events, state: SinkRecState, *, dropout_key: PRNGKeyArray | None
    ) -> Encoding:
        """Returns hidden states [B, T, D], the weighted losses, the memory's metrics, the state."""
        config, events = self.config, self.request_time.visible_events(events)
        embedding_key, *loop_keys, read_key, memory_key = split_key(dropout_key, 3 + config.loops)
        embedded, ids = self._embed(events), events.segment_ids
        gaps, last_timestamp = gaps_in_days(events.timestamps, ids, state.last_timestamp)
        read = dropout(embedded, config.memory_dropout, read_key)
        memory, embeddings = self.memory(read, ids, state.embeddings)
        memory = memory.dropped(config.memory_dropout, memory_key)
        inputs = MixerInputs(ids, gaps, self.gap_features(gaps), memory, waits_in_days(events))

        # The memory's codes are of items, whenever they come: it reads no request times.
        x = self.request_time.enter(embedded, events)
        x = dropout(x, config.dropout, embedding_key)
        loops = []
        for loop, (before, key) in enumerate(zip(state.loops, loop_keys, strict=True)):
            x = x + self.loops[loop].astype(x.dtype)
            x, after = self._block(loop)(x, inputs, before, dropout_key=key)
            loops.append(after)

        weights = {"vq": config.quantization_weight, "reconstruction": config.reconstruction_weight}
        return Encoding(
            self.request_time.leave(self.norm(x), events),
            {name: weights[name] * loss for name, loss in memory.losses.items()},
            SinkRecState(loops, embeddings, last_timestamp),
            memory.metrics,
            memory.code_counts,
        )

    def after_step(self, events: Events, counts: Float[Array, "S L K"], key: PRNGKeyArray) -> None:
        """Replaces the memory's dead codes after a training step; changes the model."""
        self.memory.reseed(self._embed(events), events.segment_ids, counts, key)

    def _block(self, loop: int) -> "SinkRecBlock":
        return self.blocks[0 if self.config.shared else loop]

    def _embed(self, events: Events) -> Float[Array, "B T D"]:
        return self.embedding(events.items) * self.config.width**0.5


class MixerInputs(NamedTuple):
    """What a block reads of the events beside its input: see `TDGD` and `MemoryAttention`."""

    segment_ids: Int[Array, "B T"]
    gaps: Float[Array, "B T"]
    gap_features: Float[Array, "B T F"]
    memory: MemoryReading
    wait: Float[Array, "B T"] | None


class SinkRecBlock(Block):
    """One pass: reinjection, memory attention, recurrence, feed-forward; each a residual branch."""

    mixer: TDGD
    mixer_norm: nnx.RMSNorm

    def __init__(self, config: SinkRecConfig, *, rngs: nnx.Rngs):
        width, dtype, memory = config.width, config.compute_dtype, config.memory

        def norm() -> nnx.RMSNorm:
            return rms_norm(width, epsilon=1e-6, dtype=dtype, rngs=rngs)

        self.reinjection = (
            Reinjection(width, dtype=dtype, rngs=rngs)
            if memory and config.reinjection
            else NoReinjection()
        )
        self.attention_norm = norm()
        self.attention = MemoryAttention(
            width,
            config.heads,
            window=config.attention_window,
            slot_width=width // 2 if memory and config.memory_key_values else None,
            kernel=config.kernel if config.attention_convolution else None,
            dtype=dtype,
            rngs=rngs,
        )
        super().__init__(
            norm(),
            TDGD(
                width,
                config.heads,
                key_width=config.key_width,
                value_width=config.value_width,
                kernel=config.kernel,
                gap_features=config.gap_features if config.temporal_addressing else None,
                temporal_decay=config.temporal_decay,
                write_gate=(
                    "none" if config.write_gate == "memory" and not memory else config.write_gate
                ),
                read_removal=config.read_removal and memory,
                chunk_size=config.chunk_size,
                dtype=dtype,
                rngs=rngs,
            ),
            norm(),
            SwiGLU(width, config.feed_forward * width, config.dropout, dtype=dtype, rngs=rngs),
            rate=config.dropout,
        )

    def initial_state(self, batch_size: int) -> LoopState:
        """The state of attention and recurrence before any event."""
        return LoopState(
            self.attention.initial_state(batch_size), self.mixer.initial_state(batch_size)
        )

    def __call__(  # type: ignore[override]
        self,
        x: Float[Array, "B T D"],
        inputs: MixerInputs,
        state: LoopState,
        *,
        dropout_key: PRNGKeyArray | None,
    ) -> tuple[Float[Array, "B T D"], LoopState]:
        """Returns the block's output, and the state of its attention and recurrence."""
        attention_key, mixer_key, *feed_keys = split_key(dropout_key, 4)
        x = x + self.reinjection(x, inputs.memory.vector)
        attended, attention = self.attention(
            self.attention_norm(x), inputs.segment_ids, state.attention, slots=inputs.memory.slots
        )
        x = x + dropout(attended, self.rate, attention_key)
        mixed, mixer = self.mixer(
            self.mixer_norm(x),
            inputs.segment_ids,
            state.mixer,
            gaps=inputs.gaps,
            gap_features=inputs.gap_features,
            memory=inputs.memory,
            wait=inputs.wait,
        )
        x = x + dropout(mixed, self.rate, mixer_key)
        return self.feed(x, *feed_keys), LoopState(attention, mixer)


class Reinjection(nnx.Module):
    """σ(⟨N_m(W_gk m), N_x(x)⟩ / √D) W_gv m, where W_gv starts at 0: nothing is added at first."""

    def __init__(self, width: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.gate_key = Gate(width, width, bias=False, dtype=dtype, rngs=rngs)
        self.value = Dense(width, width, bias=False, deviation=0.0, dtype=dtype, rngs=rngs)
        self.key_norm = rms_norm(width, epsilon=1e-6, dtype=dtype, rngs=rngs)
        self.input_norm = rms_norm(width, epsilon=1e-6, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B T D"], memory: Float[Array, "B T D"]
    ) -> Float[Array, "B T D"]:
        """What to add to x of the memory's vectors."""
        key, query = self.key_norm(self.gate_key(memory)), self.input_norm(x)
        alike = jnp.sum((key * query).astype(jnp.float32), axis=-1, keepdims=True)
        share = jax.nn.sigmoid(alike * x.shape[-1] ** -0.5)
        return share.astype(x.dtype) * self.value(memory)


class NoReinjection(nnx.Module):
    """Stands for `Reinjection` in a block without it."""

    def __call__(self, x: Float[Array, "B T D"], memory: Float[Array, "B T D"]) -> float:
        """Nothing."""
        del x, memory
        return 0.0
