"""Mamba-2: a stack of state space duals (arXiv 2405.21060), as a recommender.

    H = Drop(√D E[items])
    per block:  H = H + Drop(Mixer(RMSNorm(H)));  H = H + Drop(FFN(RMSNorm(H)))
    scores = RMSNorm(H) E^T

Marked [P]: the paper and its released code. Marked [O]: ours.

- [P] The mixer (`Mamba2Mixer`) and its starting values. Keys and queries are shared by all heads.
- [O] The frame of a recommender around it: that of Gated DeltaNet, with a tied item table, a GELU
  feed-forward half and dropout. The released stack has no feed-forward half.
- [O] A history's first event starts from an empty memory and an empty convolution.

The parameters by name, with i the block from 0, H heads, K and V a head's key and value width,
kernels [in, out]. The released in_proj holds z, x, B, C and dt one after the other:

    embedding/table [N + 1, D]                       E; row 0 is the padding item
    blocks/i/{mixer_norm,feed_forward_norm}/scale    RMSNorm before the halves
    blocks/i/mixer/input/kernel [D, H V + 2 K]       x of all heads, then B (keys), then C (queries)
    blocks/i/mixer/convolution/weight [4, H V + 2 K] row 3 is the current event;  bias
    blocks/i/mixer/step_gate/kernel [D, H]           dt;  step_bias [H]: dt_bias
    blocks/i/mixer/log_rate [H]                      A_log;  skip [H]: D of the paper
    blocks/i/mixer/output_gate/kernel [D, H V]       z
    blocks/i/mixer/norm/scale [H V]                  of the gated output, all heads together
    blocks/i/mixer/output/kernel [H V, D]            out_proj
    blocks/i/feed_forward/{expand,contract}/{kernel,bias}
    norm/scale                                       the last RMSNorm
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from linseqrec.config_fields import Count, Rate
from linseqrec.events import Events
from linseqrec.layers.block import Block
from linseqrec.layers.short_convolution import ShortConvolution
from linseqrec.layers.standard import (
    Dense,
    FeedForward,
    Gate,
    GateLogits,
    ItemEmbedding,
    dropout,
    rms_norm,
    split_key,
)
from linseqrec.layers.states import MixerTrace, empty, past_or_none, record
from linseqrec.models.base import Dtype, Encoding, ModelConfig, SequenceModel, request_layer
from linseqrec.ops.decayed_linear_attention import decayed_linear_attention

# Fresh steps Δ are drawn between these, uniformly in their logarithm; fresh rates between those.
_STEPS, _RATES = (1e-3, 1e-1), (1.0, 16.0)


@dataclasses.dataclass(frozen=True)
class Mamba2Config(ModelConfig):
    """Mamba-2's hyperparameters; the defaults of the mixer are the released ones at width 64.

    Attributes:
      width: D.
      heads: Memories a block.
      num_layers: Blocks.
      key_width: Width of the keys and queries that all heads share (released: d_state).
      value_width: Width of a head's values (released: headdim). Heads times this is twice the width
        in the released models.
      kernel: Taps of the short convolution.
      feed_forward: Width of the feed-forward half's hidden layer, in widths.
      dropout: Rate on the embeddings, the mixer's output and the feed-forward half.
      chunk_size: The most events that the memory takes at once; changes speed, not results.
      dtype: Compute dtype; "auto" is bfloat16 on an accelerator (`ModelConfig.compute_dtype`).
    """

    width: Count = 64
    heads: Count = 2
    num_layers: Count = 2
    key_width: Count = 128
    value_width: Count = 64
    kernel: Count = 4
    feed_forward: Count = 4
    dropout: Rate = 0.1
    chunk_size: Count = 64
    dtype: Dtype = "auto"

    reads_request_times = True

    def build(self, num_items: int, *, rngs: nnx.Rngs, request_time: bool = False) -> "Mamba2":
        """Makes the model with fresh parameters; see `ModelConfig.build`."""
        return Mamba2(self, num_items, request_time=request_time, rngs=rngs)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mamba2State:
    """What a mixer carries from one call to the next.

    Attributes:
      memory: [B, H, K, V], float32.
      convolution: The last `kernel - 1` inputs of the short convolution, [B, W - 1, H V + 2 K].
    """

    memory: Float[Array, "B H K V"]
    convolution: Float[Array, "B P E"]


class Mamba2Mixer(nnx.Module):
    """Mixes a history's events through memories that forget by a step of the event's own.

        v, k, q = SiLU(conv(W_in x));  Δ = softplus(W_Δ x + b);  log α = -e^a Δ
        S = α S + k (Δ v)ᵀ;  o = Sᵀ q + d v                                      per head
        y = W_o RMSNorm(o ⊙ SiLU(W_z x))

    Source: arXiv 2405.21060 and its released code, with one group: k and q are those of all heads.

    Attributes:
      log_rate, step_bias, skip: a, b and d, float32 [H].
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        key_width: int,
        value_width: int,
        kernel: int,
        output_scale: float,
        chunk_size: int,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Args: `output_scale` multiplies the fresh W_o."""
        self.heads, self.key_width, self.value_width = heads, key_width, value_width
        self.chunk_size = chunk_size
        inner = heads * value_width
        mixed = inner + 2 * key_width
        self.input = Dense(width, mixed, bias=False, dtype=dtype, rngs=rngs)
        self.convolution = ShortConvolution(mixed, kernel, rngs=rngs)
        self.step_gate = GateLogits(width, heads, rngs=rngs)
        self.output_gate = Gate(width, inner, bias=False, dtype=dtype, rngs=rngs)
        self.norm = rms_norm(inner, epsilon=1e-5, dtype=dtype, rngs=rngs)
        self.output = Dense(inner, width, bias=False, dtype=dtype, rngs=rngs)
        for layer, scale in (
            (self.input, 1.0),
            (self.step_gate, 1.0),
            (self.output_gate, 1.0),
            (self.output, output_scale),
        ):
            layer.kernel[...] = _uniform(layer.kernel.shape, scale, rngs=rngs)
        draw = jax.random.uniform(rngs.params(), (heads,), minval=0, maxval=1)
        low, high = map(math.log, _STEPS)
        steps = jnp.exp(low + (high - low) * draw)
        rates = jax.random.uniform(rngs.params(), (heads,), minval=_RATES[0], maxval=_RATES[1])
        # What softplus makes the drawn step.
        self.step_bias = nnx.Param(jnp.log(jnp.expm1(steps)))
        self.log_rate, self.skip = nnx.Param(jnp.log(rates)), nnx.Param(jnp.ones(heads))

    def initial_state(self, batch_size: int) -> Mamba2State:
        """The state before any event."""
        memory = empty(batch_size, self.heads, self.key_width, self.value_width)
        return Mamba2State(memory, self.convolution.initial_state(batch_size))

    def __call__(
        self, x: Float[Array, "B T D"], segment_ids: Int[Array, "B T"], state: Mamba2State
    ) -> tuple[Float[Array, "B T D"], Mamba2State]:
        """Mixes a row's events over time.

        Args:
          x: Normalised inputs.
          segment_ids: One id from 1 per history; 0 is padding.
          state: The past of each row's first segment.

        Returns:
          The mixed values, and the state after each row's last segment.
        """
        mixed, convolution = self.convolution(self.input(x), segment_ids, state.convolution)
        inner = self.heads * self.value_width
        value, key, query = jnp.split(mixed, [inner, inner + self.key_width], axis=-1)
        value = value.reshape(*x.shape[:2], self.heads, self.value_width)
        shared = (*x.shape[:2], self.heads, self.key_width)
        key, query = (jnp.broadcast_to(part[:, :, None], shared) for part in (key, query))
        steps = jax.nn.softplus(self.step_gate(x) + self.step_bias[...])
        log_decay = -jnp.exp(self.log_rate[...]) * steps
        output, memory = decayed_linear_attention(
            query,
            key,
            (steps[..., None] * value).astype(value.dtype),
            log_decay,
            segment_ids=segment_ids,
            initial_state=past_or_none(state.memory),
            chunk_size=self.chunk_size,
        )
        record(self, lambda: MixerTrace(key, memory))
        output = (output + self.skip[...][:, None] * value).astype(x.dtype)
        gated = output.reshape(*x.shape[:2], inner) * jax.nn.silu(self.output_gate(x))
        return self.output(self.norm(gated)), Mamba2State(memory, convolution)


class Mamba2(SequenceModel):
    """The model; see the module's docstring."""

    def __init__(
        self,
        config: Mamba2Config,
        num_items: int,
        *,
        request_time: bool = False,
        rngs: nnx.Rngs,
    ):
        self.config = config
        width, dtype = config.width, config.compute_dtype
        hidden = config.feed_forward * width

        def norm() -> nnx.RMSNorm:
            return rms_norm(width, epsilon=1e-5, dtype=dtype, rngs=rngs)

        self.embedding = ItemEmbedding(num_items, width, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List(
            [
                Block(
                    norm(),
                    Mamba2Mixer(
                        width,
                        config.heads,
                        key_width=config.key_width,
                        value_width=config.value_width,
                        kernel=config.kernel,
                        # As released for stacks of two residual halves a block.
                        output_scale=(2 * config.num_layers) ** -0.5,
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

    def initial_state(self, batch_size: int) -> list[Mamba2State]:
        """One state per block."""
        return [block.initial_state(batch_size) for block in self.blocks]

    def encode(
        self, events: Events, state: list[Mamba2State], *, dropout_key: PRNGKeyArray | None
    ) -> Encoding:
        """Returns hidden states [B, T, D], no auxiliary losses, and one state per block."""
        embedding_key, *block_keys = split_key(dropout_key, 1 + len(self.blocks))
        x = self.embedding(events.items) * self.config.width**0.5
        x = self.request_time.enter(x, events)
        x = dropout(x, self.config.dropout, embedding_key)
        ids, after = events.segment_ids, []
        for block, before, key in zip(self.blocks, state, block_keys, strict=True):
            x, moved = block(x, ids, (ids,), before, dropout_key=key)
            after.append(moved)
        return Encoding(self.request_time.leave(self.norm(x), events), state=after)


def _uniform(shape: tuple[int, ...], scale: float, *, rngs: nnx.Rngs) -> Float[Array, "I O"]:
    """U(±scale / √inputs): the released starting values, PyTorch's default for a linear layer."""
    bound = scale * shape[0] ** -0.5
    return jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound)
