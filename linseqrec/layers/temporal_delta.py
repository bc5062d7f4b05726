"""TADN: a gated delta memory whose decay knows the time (HyTRec, arXiv 2602.18283)."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from linseqrec.layers.dense import gate_logits
from linseqrec.layers.gated_delta_net import DeltaInputs, GatedDelta, unit
from linseqrec.layers.time_gaps import initial_log_horizon, log_fading
from linseqrec.ops.linear_attention import LinearAttentionState
from linseqrec.ops.running_mean import running_mean

Gate = Literal["write", "erase", "beta", "none"]

# The least erase gate: it divides the values (see `TemporalDeltaMixer`).
_LEAST_ERASE = 0.01


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TemporalDeltaState:
    """What the mixer carries from one call to the next, of a size that no history changes.

    Attributes:
      memory: [B, H, K, V], float32.
      convolution: The last `kernel - 1` inputs of the short convolution, [B, W - 1, 3 D].
      mean: Sum [B, 1, 1, D] and count [B, 1, 1] of the history's inputs; None without a gate.
    """

    memory: Float[Array, "B H K V"]
    convolution: Float[Array, "B W-1 E"]
    mean: LinearAttentionState | None


class TemporalDeltaMixer(GatedDelta):
    """Mixes a history's events through a memory that fades with the days between them.

        q, k, v = SiLU(conv(W_qkv x));  q = q / |q| / √K;  k = k / |k|            per head
        β = σ(W_β x)
        log α = -e^a softplus(W_α x + b) - Δ / T                                  T = e^c, in days
        s = σ(W_s [x; x - mean(x_1..x_t)] + b_s)                                  one a head
        o = gated_delta_rule(q, k, v, log α, β), gated by s
        y = W_o (RMSNorm(o) ⊙ SiLU(W_g x))

    Source: the abstract of HyTRec has a time-based decay and a gate that weighs the past against
    the spike, in a delta network; all equations are ours. Decaying the memory over the gap before
    each event is weighting each write by exp(-(now - then) / T), with "now" at the event that
    reads; so every position trains at once. A memory that faded as a whole reads weaker, too:
    RMSNorm takes that out only of reads well above its epsilon.

    The rule writes S += k (β v - β Sᵀk)ᵀ: β v is written, β Sᵀk erased. What `gate` weighs by s:

        "write"   v <- s v: the write is s β, the erase β.
        "erase"   the erase is s β, the write β. The rule has one β, so β <- s β and v <- v / s:
                  a write without an erase cannot be said without a division. Hence s is kept away
                  from 0: s = 0.01 + 0.99 σ(..).
        "beta"    β <- s β: both.
        "none"    nothing; there is no gate.

    Δ is what the caller takes for the days since the event before (`gaps_taken`); without `timed`
    there is no T, and Δ is not read.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        gate: Gate = "write",
        timed: bool = True,
        kernel: int = 4,
        chunk_size: int = 64,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args: `heads` divide the width; `kernel` is the convolution's taps."""
        super().__init__(
            width,
            heads,
            key_width=width // heads,
            value_width=width // heads,
            kernel=kernel,
            chunk_size=chunk_size,
            dtype=dtype,
            rngs=rngs,
        )
        self.gate = gate
        self.spike_gate = (
            None if gate == "none" else gate_logits(2 * width, heads, bias=True, rngs=rngs)
        )
        self.log_horizon = nnx.Param(initial_log_horizon(heads, rngs=rngs)) if timed else None

    def __call__(
        self,
        x: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"],
        gaps: Float[Array, "B T"],
        state: TemporalDeltaState | None = None,
    ) -> tuple[Float[Array, "B T D"], TemporalDeltaState]:
        """Mixes a row's events over time.

        Args:
          x: Normalised inputs.
          segment_ids: One id from 1 per history; 0 is padding.
          gaps: Days before each event, float32.
          state: The past of each row's first segment; None is no past.

        Returns:
          The mixed values, and the state after each row's last segment.
        """
        inputs, convolution, mean = self.inputs(x, segment_ids, gaps, state)
        output, memory = self.remember(inputs, segment_ids, None if state is None else state.memory)
        return self.emit(output, x), TemporalDeltaState(memory, convolution, mean)

    def inputs(
        self,
        x: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"],
        gaps: Float[Array, "B T"],
        state: TemporalDeltaState | None,
    ) -> tuple[DeltaInputs, Float[Array, "B W-1 E"], LinearAttentionState | None]:
        """What goes into the rule, and the state of all but the memory, in its order."""
        query, key, value, convolution = self.project(
            x, segment_ids, None if state is None else state.convolution
        )
        log_decay, beta = self.gates(x)
        if self.log_horizon is not None:
            log_decay = log_decay + log_fading(gaps, self.log_horizon[...])
        share, mean = self.share(x, segment_ids, None if state is None else state.mean)
        value, beta = self._weigh(value, beta, share)
        query = unit(query) * self.key_width**-0.5
        return DeltaInputs(query, unit(key), value, log_decay, beta), convolution, mean

    def share(
        self,
        x: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"],
        state: LinearAttentionState | None,
    ) -> tuple[Float[Array, "B T H"] | None, LinearAttentionState | None]:
        """The gate s, and the sums that the next call's mean goes on from."""
        if self.spike_gate is None:
            return None, None
        mean, state = running_mean(x, segment_ids=segment_ids, initial_state=state)
        return jax.nn.sigmoid(self.spike_gate(jnp.concatenate([x, x - mean], axis=-1))), state

    def _weigh(
        self, value: Float[Array, "B T H V"], beta: Float[Array, "B T H"], share: Array | None
    ) -> tuple[Float[Array, "B T H V"], Float[Array, "B T H"]]:
        """Values and β as the gate has them."""
        if share is None:
            return value, beta
        if self.gate == "write":
            return (share[..., None] * value).astype(value.dtype), beta
        if self.gate == "erase":
            share = _erase_share(share)
            return (value / share[..., None]).astype(value.dtype), share * beta
        return value, share * beta

    def written(
        self, beta: Float[Array, "B T H"], share: Float[Array, "B T H"] | None
    ) -> Float[Array, "B T H"]:
        """How much of its value each event writes, of the β that the rule was given and s."""
        if share is None or self.gate == "beta":
            return beta
        return share * beta if self.gate == "write" else beta / _erase_share(share)


def _erase_share(share: Float[Array, "B T H"]) -> Float[Array, "B T H"]:
    return _LEAST_ERASE + (1 - _LEAST_ERASE) * share
