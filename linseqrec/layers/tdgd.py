"""SinkRec's mixer: a gated delta rule that decays with time and writes covered events less."""

import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from linseqrec.layers.conditional_memory import MemoryReading
from linseqrec.layers.gated_delta import (
    DeltaInputs,
    GatedDelta,
    GatedDeltaState,
    delta_trace,
)
from linseqrec.layers.standard import Dense, GateLogits, unit_length
from linseqrec.layers.states import MixerTrace, record
from linseqrec.layers.time_gaps import initial_log_horizon, left_at_request, log_fading

WriteGate = Literal["memory", "input", "none"]


class TDGD(GatedDelta):
    """TDGD, the Temporal-Aware State-Relation Differential Gated DeltaNet (arXiv 2606.09888).

    Per head, with everything not named here as in `GatedDelta`:

        q = L2norm(SiLU(conv(W_q x)) + U_q φ);  k likewise              temporal addressing
        log α = −exp(a) softplus(W_α x + b) − Δ / T                     temporal decay
        k^m = L2norm(W_mk m)
        c = σ(w_1 relu⟨k, k^m⟩ + w_2 (1 − ρ) + W_c [x; m] + b_c)        coverage
        λ = σ(W_λ [x; m] + b_λ)
        o = gated_delta_rule((q − λ k^m) / √K, k, v, log α, β (1 − c))

    The coverage c reduces the write of an event that the memory already covers. The removal λ
    subtracts from a reading what the state recalls for the memory's key:
    Sᵀ(q − λ k^m) = Sᵀq − λ Sᵀk^m. No gate reads the state, so the chunked form stays exact. With
    c = λ = Δ = 0 the rule is Gated DeltaNet. From the paper's abstract: temporal addressing and
    decay, purified writing and purified reading. Ours: the equations, because we could not read the
    paper's.

    If request times are known, the memory also fades from event t to its request:
    exp(−(request − t) / T) multiplies RMSNorm(o).

    A part that is off is a constant in these equations: U = 0, T = ∞, b_c = −∞ or b_λ = −∞; the
    gate that does not see the memory has w_1 = w_2 = 0 and reads x alone.

    Attributes:
      log_horizon: log T, float32 [H], T in days.
      coverage_bias: b_c, float32 [H].
      coverage_weights: w_1 and w_2, float32 [2, H].
      removal_bias: b_λ, float32 [H].
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        key_width: int,
        value_width: int,
        kernel: int = 4,
        gap_features: int | None,
        temporal_decay: bool,
        write_gate: WriteGate,
        read_removal: bool,
        chunk_size: int = 64,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Makes fresh parameters.

        Args:
          width: D.
          heads: H.
          key_width: K, a head's.
          value_width: V, a head's.
          kernel: Taps of the short convolution.
          gap_features: Width of φ; None: no temporal addressing.
          temporal_decay: Whether the gap decays the state.
          write_gate: c from the "memory"; from the "input" alone, σ(W_c x + b_c); "none", c = 0.
          read_removal: Whether λ is learned, or 0.
          chunk_size: The most events that the memory takes at once; changes speed, not results.
          dtype: Compute dtype.
          rngs: Randomness.
        """
        super().__init__(
            width,
            heads,
            key_width=key_width,
            value_width=value_width,
            kernel=kernel,
            chunk_size=chunk_size,
            dtype=dtype,
            rngs=rngs,
        )
        # U = 0: gaps turn no query or key before training says how, and the lookup stands.
        self.address = (
            Zeros(2 * heads * key_width)
            if gap_features is None
            else Dense(
                gap_features,
                2 * heads * key_width,
                bias=False,
                deviation=0.0,
                dtype=dtype,
                rngs=rngs,
            )
        )
        self.log_horizon = (
            nnx.Param(initial_log_horizon(heads, rngs=rngs)) if temporal_decay else math.inf
        )
        sees_memory = write_gate == "memory"
        self.memory_key = (
            Dense(width, heads * key_width, bias=False, dtype=dtype, rngs=rngs)
            if sees_memory or read_removal
            else Zeros(heads * key_width)
        )
        # Both gates start nearly shut, so that the layer starts close to Gated DeltaNet: c is about
        # .2 (the bias alone gives 1/8; w_1 and w_2 add the rest), and λ is about 1/8.
        self.coverage_gate = {
            "memory": lambda: GateOfBoth(2 * width, heads, rngs=rngs),
            "input": lambda: GateOfInput(width, heads, rngs=rngs),
            "none": lambda: Zeros(heads),
        }[write_gate]()
        self.coverage_bias = -math.inf if write_gate == "none" else _nearly_shut(heads)
        self.coverage_weights = nnx.Param(jnp.ones((2, heads))) if sees_memory else (0.0, 0.0)
        self.removal_gate = (
            GateOfBoth(2 * width, heads, rngs=rngs) if read_removal else Zeros(heads)
        )
        self.removal_bias = _nearly_shut(heads) if read_removal else -math.inf

    def __call__(
        self,
        x: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"],
        state: GatedDeltaState,
        *,
        gaps: Float[Array, "B T"],
        gap_features: Float[Array, "B T F"],
        memory: MemoryReading,
        wait: Float[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], GatedDeltaState]:
        """Mixes a row's events over time.

        Args:
          x: Normalised inputs.
          segment_ids: One id from 1 per history; 0 is padding.
          state: The past of each row's first segment.
          gaps: Days since the last event; for temporal decay.
          gap_features: φ; for temporal addressing.
          memory: The memory's reading of the events; for the gates that see it.
          wait: Days from each event to the request after it, to which temporal decay runs on; None
            where it is hidden.

        Returns:
          The mixed values, and the state after each row's last segment.
        """
        query, key, value, convolution = self.project(x, segment_ids, state.convolution)
        shift = self.address(gap_features).reshape(*query.shape[:2], 2, *query.shape[2:])
        query, key = unit_length(query + shift[:, :, 0]), unit_length(key + shift[:, :, 1])
        memory_key = unit_length(self.memory_key(memory.vector).reshape(key.shape))
        log_decay, beta = self.gates(x)
        coverage = self.coverage(x, key, memory_key, memory)
        removal = self.removal(x, memory)
        query = query - removal[..., None].astype(query.dtype) * memory_key
        inputs = DeltaInputs(
            query * self.key_width**-0.5,
            key,
            value,
            log_decay + log_fading(gaps, self.log_horizon),
            beta * (1 - coverage),
        )
        output, after = self.remember(inputs, segment_ids, state.memory)
        record(self, lambda: self._trace(inputs, after, coverage, removal))
        left = left_at_request(wait, self.log_horizon)
        return self.emit(output, x, left), GatedDeltaState(after, convolution)

    def removal(self, x: Float[Array, "B T D"], memory: MemoryReading) -> Float[Array, "B T H"]:
        """λ, how much of the answer to the memory's key is taken out of a reading; float32."""
        return jax.nn.sigmoid(self.removal_gate(x, memory.vector) + self.removal_bias)

    def coverage(
        self,
        x: Float[Array, "B T D"],
        key: Float[Array, "B T H K"],
        memory_key: Float[Array, "B T H K"],
        memory: MemoryReading,
    ) -> Float[Array, "B T H"]:
        """c, the share of each write that is suppressed; float32."""
        alike = jnp.einsum("bthk,bthk->bth", key.astype(jnp.float32), memory_key)
        return jax.nn.sigmoid(
            self.coverage_weights[0] * jax.nn.relu(alike)
            + self.coverage_weights[1] * (1 - memory.error)[..., None]
            + self.coverage_gate(x, memory.vector)
            + self.coverage_bias
        )

    def _trace(
        self,
        inputs: DeltaInputs,
        memory: Float[Array, "B H K V"],
        coverage: Float[Array, "B T H"],
        removal: Float[Array, "B T H"],
    ) -> MixerTrace:
        gates = {
            "coverage": (self.coverage_gate, coverage),
            "removal": (self.removal_gate, removal),
        }
        learned = {name: g for name, (layer, g) in gates.items() if not isinstance(layer, Zeros)}
        return delta_trace(inputs, memory, inputs.beta, **learned)


class GateOfBoth(GateLogits):
    """W [x; m]: the logits of a gate that sees the memory."""

    def __call__(  # type: ignore[override]
        self, x: Float[Array, "B T D"], memory: Float[Array, "B T D"]
    ) -> Float[Array, "B T H"]:
        """The logits, float32."""
        return super().__call__(jnp.concatenate([x, memory], axis=-1))


class GateOfInput(GateLogits):
    """W x: the logits of a gate that does not see the memory."""

    def __call__(  # type: ignore[override]
        self, x: Float[Array, "B T D"], memory: Float[Array, "B T D"]
    ) -> Float[Array, "B T H"]:
        """The logits, float32."""
        del memory
        return super().__call__(x)


class Zeros(nnx.Module):
    """Stands for a projection that is off."""

    def __init__(self, width: int):
        self.width = width

    def __call__(
        self, x: Float[Array, "B T D"], memory: Float[Array, "B T D"] | None = None
    ) -> Float[Array, "B T W"]:
        """Zeros in x's dtype."""
        del memory
        return jnp.zeros((*x.shape[:2], self.width), x.dtype)


def _nearly_shut(heads: int) -> nnx.Param:
    return nnx.Param(jnp.full((heads,), -2.0))
