"""SinkRec's recurrent mixer: a gated delta memory that knows time and what is known already."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from linseqrec.layers.conditional_memory import MemoryReading
from linseqrec.layers.dense import dense, gate_logits
from linseqrec.layers.gated_delta import DeltaInputs, GatedDelta, GatedDeltaState, unit
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

    What the memory covers is written less, and what the state answers to the memory's key is taken
    out of the reading: Sᵀ(q − λ k^m) = Sᵀq − λ Sᵀk^m. No gate reads the state, so that the chunked
    form stays exact, and c = λ = Δ = 0 is Gated DeltaNet. Temporal addressing and decay, purified
    writing and purified reading are the paper's; its equations are not public, and these are ours.

    Where request times are known, the temporal decay runs on to the request: RMSNorm(o) is
    multiplied by exp(−(request − t) / T).

    Attributes:
      log_horizon: log T, float32 [H], T in days.
      coverage_weights: w_1 and w_2, float32 [2, H].
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
        dtype: jnp.dtype = jnp.float32,
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
        make = lambda inputs, outputs: dense(inputs, outputs, bias=False, dtype=dtype, rngs=rngs)  # noqa: E731
        # Gates start nearly shut: as Gated DeltaNet, but for some fifth of each write (an eighth by
        # the bias, the rest by w_1 and w_2) and an eighth of what the memory's key reads.
        shut = lambda: nnx.Param(jnp.full((heads,), -2.0))  # noqa: E731
        # U = 0: gaps turn no query or key before training says how, and the lookup stands.
        self.address = (
            None
            if gap_features is None
            else dense(
                gap_features,
                2 * heads * key_width,
                bias=False,
                deviation=0.0,
                dtype=dtype,
                rngs=rngs,
            )
        )
        self.log_horizon = (
            nnx.Param(initial_log_horizon(heads, rngs=rngs)) if temporal_decay else None
        )
        sees_memory = write_gate == "memory"
        self.memory_key = make(width, heads * key_width) if sees_memory or read_removal else None
        gated = write_gate != "none"
        self.coverage_gate = (
            gate_logits(2 * width if sees_memory else width, heads, rngs=rngs) if gated else None
        )
        self.coverage_bias = shut() if gated else None
        self.coverage_weights = nnx.Param(jnp.ones((2, heads))) if sees_memory else None
        self.removal_gate = gate_logits(2 * width, heads, rngs=rngs) if read_removal else None
        self.removal_bias = shut() if read_removal else None

    def __call__(
        self,
        x: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"],
        state: GatedDeltaState | None = None,
        *,
        gaps: Float[Array, "B T"] | None = None,
        gap_features: Float[Array, "B T F"] | None = None,
        memory: MemoryReading | None = None,
        wait: Float[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], GatedDeltaState]:
        """Mixes a row's events over time.

        Args:
          x: Normalised inputs.
          segment_ids: One id from 1 per history; 0 is padding.
          state: The past of each row's first segment; None is no past.
          gaps: Days since the last event; for temporal decay.
          gap_features: φ; for temporal addressing.
          memory: The memory's reading of the events; for gates that ask for it.
          wait: Days from each event to the request after it, to which temporal decay runs on; None
            where it is hidden.

        Returns:
          The mixed values, and the state after each row's last segment.
        """
        inputs, convolution = self.inputs(
            x,
            segment_ids,
            None if state is None else state.convolution,
            gaps=gaps,
            gap_features=gap_features,
            memory=memory,
        )
        output, after = self.remember(inputs, segment_ids, None if state is None else state.memory)
        left = left_at_request(wait, None if self.log_horizon is None else self.log_horizon[...])
        return self.emit(output, x, left), GatedDeltaState(after, convolution)

    def inputs(
        self,
        x: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"],
        past: Float[Array, "B W-1 E"] | None,
        *,
        gaps: Float[Array, "B T"] | None,
        gap_features: Float[Array, "B T F"] | None,
        memory: MemoryReading | None,
    ) -> tuple[DeltaInputs, Float[Array, "B W-1 E"]]:
        """What goes into the rule, and the convolution's state."""
        query, key, value, convolution = self.project(x, segment_ids, past)
        log_decay, beta = self.gates(x)
        if self.address is not None:
            assert gap_features is not None, "temporal addressing reads the gaps' features"
            shift = self.address(gap_features).reshape(*query.shape[:2], 2, *query.shape[2:])
            query, key = query + shift[:, :, 0], key + shift[:, :, 1]
        query, key = unit(query), unit(key)
        if self.log_horizon is not None:
            assert gaps is not None, "temporal decay reads gaps"
            log_decay = log_decay + log_fading(gaps, self.log_horizon[...])
        memory_key = None
        both = x
        if self.memory_key is not None:
            assert memory is not None, "these gates read the memory"
            memory_key = unit(self.memory_key(memory.vector).reshape(key.shape))
            both = jnp.concatenate([x, memory.vector], axis=-1)
        if self.coverage_gate is not None:
            beta = beta * (1 - self.coverage(x, both, key, memory_key, memory))
        if self.removal_gate is not None:
            assert memory_key is not None
            query = query - self.removal(both)[..., None].astype(query.dtype) * memory_key
        query = query * self.key_width**-0.5
        return DeltaInputs(query, key, value, log_decay, beta), convolution

    def removal(self, both: Float[Array, "B T 2D"]) -> Float[Array, "B T H"]:
        """λ, how much of the answer to the memory's key is taken out of a reading; float32."""
        assert self.removal_gate is not None and self.removal_bias is not None
        return jax.nn.sigmoid(self.removal_gate(both) + self.removal_bias[...])

    def coverage(
        self,
        x: Float[Array, "B T D"],
        both: Float[Array, "B T 2D"],
        key: Float[Array, "B T H K"],
        memory_key: Float[Array, "B T H K"] | None,
        memory: MemoryReading | None,
    ) -> Float[Array, "B T H"]:
        """c, the share of each write that is suppressed; float32."""
        assert self.coverage_gate is not None and self.coverage_bias is not None
        if self.coverage_weights is None:
            return jax.nn.sigmoid(self.coverage_gate(x) + self.coverage_bias[...])
        assert memory is not None and memory_key is not None
        alike = jnp.einsum("bthk,bthk->bth", key.astype(jnp.float32), memory_key)
        weights = self.coverage_weights[...]
        return jax.nn.sigmoid(
            weights[0] * jax.nn.relu(alike)
            + weights[1] * (1 - memory.error)[..., None]
            + self.coverage_gate(both)
            + self.coverage_bias[...]
        )
