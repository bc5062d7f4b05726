"""The mixer of Gated DeltaNet (arXiv 2412.06464)."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from linseqrec.layers.short_convolution import ShortConvolution
from linseqrec.layers.standard import Dense, Gate, GateLogits, rms_norm, unit_length
from linseqrec.layers.starting_values import (
    LINEAR,
    copy_kernel,
    lookup_decay,
    lookup_kernel,
    lookup_taps,
)
from linseqrec.layers.states import MixerTrace, empty, past_or_none, record
from linseqrec.ops.gated_delta_rule import gated_delta_rule, sequence_parallel_gated_delta_rule
from linseqrec.sharding import DATA, SEQUENCE, time_is_split


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GatedDeltaState:
    """What the mixer carries from one call to the next.

    Attributes:
      memory: [B, H, K, V], float32.
      convolution: The last `kernel - 1` inputs of the short convolution, [B, W - 1, H (2 K + V)].
    """

    memory: Float[Array, "B H K V"]
    convolution: Float[Array, "B P E"]


class DeltaInputs(NamedTuple):
    """What goes into the rule, a head each: its arguments in their order.

    Attributes:
      query, key, value: In the compute dtype; the query is scaled by 1/√K already.
      log_decay, beta: float32.
    """

    query: Float[Array, "B T H K"]
    key: Float[Array, "B T H K"]
    value: Float[Array, "B T H V"]
    log_decay: Float[Array, "B T H"]
    beta: Float[Array, "B T H"]


class GatedDelta(nnx.Module):
    """The parts around a gated delta memory: projections, gates and output.

    A subclass makes the `DeltaInputs` of the rule from them. Here a head's q, k, v are not yet of
    unit length:

        q, k, v = SiLU(conv(W_qkv x));  log α = -e^a softplus(W_α x + b);  β = σ(W_β x)
        y = W_o (RMSNorm(o) ⊙ SiLU(W_g x))

    Source: arXiv 2412.06464. Ours: the starting values, a lookup (`layers/starting_values.py`).
    `negative_eigenvalues` doubles β, so that a write can turn over what its key recalls
    (arXiv 2411.12537).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        key_width: int,
        value_width: int,
        kernel: int = 4,
        negative_eigenvalues: bool = False,
        chunk_size: int = 64,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args: `key_width` and `value_width` are a head's; `kernel` the convolution's taps."""
        self.heads, self.key_width, self.value_width = heads, key_width, value_width
        self.beta_scale = 2.0 if negative_eigenvalues else 1.0
        self.chunk_size = chunk_size
        sizes = heads, key_width, value_width
        mixed = heads * (2 * key_width + value_width)
        self.query_key_value = Dense(width, mixed, bias=False, dtype=dtype, rngs=rngs)
        self.query_key_value.kernel[...] = lookup_kernel(width, *sizes, rngs=rngs)
        self.convolution = ShortConvolution(mixed, kernel, bias=False, rngs=rngs)
        self.convolution.weight[...] = lookup_taps(kernel, *sizes, size=LINEAR)
        self.decay_gate = GateLogits(width, heads, rngs=rngs)
        self.write_strength = GateLogits(width, heads, rngs=rngs)
        self.output_gate = Gate(width, heads * value_width, bias=False, dtype=dtype, rngs=rngs)
        self.log_rate, self.step_bias = map(nnx.Param, lookup_decay(heads))
        self.norm = rms_norm(value_width, epsilon=1e-5, dtype=dtype, rngs=rngs)
        self.output = Dense(heads * value_width, width, bias=False, dtype=dtype, rngs=rngs)
        self.output.kernel[...] = copy_kernel(self.query_key_value.kernel[...], heads, value_width)

    def initial_state(self, batch_size: int) -> Any:
        """The state before any event: `GatedDeltaState`, or a mixer's own."""
        return GatedDeltaState(
            self.empty_memory(batch_size), self.convolution.initial_state(batch_size)
        )

    def empty_memory(self, batch_size: int) -> Float[Array, "B H K V"]:
        """The memory before any event."""
        return empty(batch_size, self.heads, self.key_width, self.value_width)

    def project(
        self,
        x: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"],
        past: Float[Array, "B P E"],
        question: Float[Array, "B T D"] | None = None,
    ) -> tuple[
        Float[Array, "B T H K"],
        Float[Array, "B T H K"],
        Float[Array, "B T H V"],
        Float[Array, "B P E"],
    ]:
        """Queries and keys, not yet of unit length, values, and the convolution's state.

        Queries are those of `question`; None: of x, as keys and values are.
        """
        mixed, keys = self.query_key_value(x), self.heads * self.key_width
        if question is not None:
            asked = self.query_key_value(question)[..., :keys]
            mixed = jnp.concatenate([asked, mixed[..., keys:]], axis=-1)
        mixed, convolution = self.convolution(mixed, segment_ids, past)
        query, key, value = (
            part.reshape(*x.shape[:2], self.heads, -1)
            for part in jnp.split(mixed, [keys, 2 * keys], axis=-1)
        )
        return query, key, value, convolution

    def gates(
        self, x: Float[Array, "B T D"]
    ) -> tuple[Float[Array, "B T H"], Float[Array, "B T H"]]:
        """The logarithm of α, and β; float32."""
        steps = jax.nn.softplus(self.decay_gate(x) + self.step_bias[...])
        beta = jax.nn.sigmoid(self.write_strength(x))
        return -jnp.exp(self.log_rate[...]) * steps, self.beta_scale * beta

    def remember(
        self,
        inputs: DeltaInputs,
        segment_ids: Int[Array, "B T"],
        memory: Float[Array, "B H K V"],
    ) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"]]:
        """The reading of each event from the memory, and the memory after the row's last event."""
        before = past_or_none(memory)
        if time_is_split():
            return _remember_split(inputs, segment_ids, before, self.chunk_size)
        return gated_delta_rule(
            *inputs, segment_ids=segment_ids, initial_state=before, chunk_size=self.chunk_size
        )

    def emit(
        self,
        output: Float[Array, "B T H V"],
        x: Float[Array, "B T D"],
        left: Float[Array, "B T H 1"] | float = 1.0,
    ) -> Float[Array, "B T D"]:
        """The mixer's output: readings normalised, times `left`, gated, and mixed over the heads.

        `left` is the factor by which a memory fades until the request. It comes after the norm,
        which would remove it.
        """
        gate, read = jax.nn.silu(self.output_gate(x)), self.norm(output)
        read = (left * read).astype(read.dtype)
        return self.output(read.reshape(gate.shape) * gate)


class GatedDeltaMixer(GatedDelta):
    """Mixes a history's events through a gated delta memory (arXiv 2412.06464).

        o = gated_delta_rule(q / |q| / √K, k / |k|, v, log α, β)                  per head

    with all else as in `GatedDelta`.
    """

    def __call__(
        self, x: Float[Array, "B T D"], segment_ids: Int[Array, "B T"], state: GatedDeltaState
    ) -> tuple[Float[Array, "B T D"], GatedDeltaState]:
        """Mixes a row's events over time.

        Args:
          x: Normalised inputs.
          segment_ids: One id from 1 per history; 0 is padding.
          state: The past of each row's first segment.

        Returns:
          The mixed values, and the state after each row's last segment.
        """
        query, key, value, convolution = self.project(x, segment_ids, state.convolution)
        inputs = DeltaInputs(
            unit_length(query) * self.key_width**-0.5, unit_length(key), value, *self.gates(x)
        )
        output, memory = self.remember(inputs, segment_ids, state.memory)
        record(self, lambda: delta_trace(inputs, memory, inputs.beta))
        return self.emit(output, x), GatedDeltaState(memory, convolution)


def delta_trace(
    inputs: DeltaInputs,
    memory: Float[Array, "B H K V"],
    written: Float[Array, "B T H"],
    **gates: Float[Array, "B T H"],
) -> MixerTrace:
    """The trace of a pass through a gated delta memory.

    Args:
      inputs: What went into the rule.
      memory: What came out of it.
      written: How much of its value an event writes.
      **gates: The mixer's other gates by name.
    """
    kept = jnp.exp(inputs.log_decay)
    return MixerTrace(inputs.key, memory, gates={"kept": kept, "written": written, **gates})


def _remember_split(
    inputs: DeltaInputs,
    segment_ids: Int[Array, "B T"],
    memory: Float[Array, "B H K V"] | None,
    chunk_size: int,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"]]:
    """`gated_delta_rule` for rows whose slots are divided over the mesh's `sequence` axis."""

    def part(inputs: DeltaInputs, segment_ids: Array, memory: Array | None) -> Any:
        return sequence_parallel_gated_delta_rule(
            *inputs,
            axis_name=SEQUENCE,
            segment_ids=segment_ids,
            initial_state=memory,
            chunk_size=chunk_size,
        )

    slots, rows = PartitionSpec(DATA, SEQUENCE), PartitionSpec(DATA)
    split = jax.shard_map(part, in_specs=(slots, slots, rows), out_specs=(slots, rows))
    return split(inputs, segment_ids, memory)
