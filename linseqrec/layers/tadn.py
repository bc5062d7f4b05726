"""TADN: a gated delta memory whose decay knows the time (HyTRec, arXiv 2602.18283)."""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from linseqrec.layers.dense import gate_logits
from linseqrec.layers.gated_delta import DeltaInputs, GatedDelta, unit
from linseqrec.layers.time_gaps import initial_log_horizon, left_at_request, log_fading
from linseqrec.ops.linear_attention import LinearAttentionState
from linseqrec.ops.recent import Recent, delayed
from linseqrec.ops.running_mean import running_mean

Gate = Literal["write", "retention", "erase", "beta", "none"]

# The least erase gate: it divides the values (see `TADN`).
_LEAST_ERASE = 0.01
# What the bias of a retention gate starts at: half of a memory is left after 280 events.
_TRUST = 6.0


class Write(NamedTuple):
    """What an event does to the memory, before the gate and the time between events.

    Attributes:
      key: Of unit length, in the compute dtype.
      value: In the compute dtype.
      log_decay: float32, of the content alone.
      beta: float32.
      spike: float32, the logits of the gate s; None without a gate.
    """

    key: Float[Array, "B T H K"]
    value: Float[Array, "B T H V"]
    log_decay: Float[Array, "B T H"]
    beta: Float[Array, "B T H"]
    spike: Float[Array, "B T H"] | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TADNState:
    """What the mixer carries from one call to the next, of a size that no history changes.

    Attributes:
      memory: [B, H, K, V], float32.
      convolution: The last `kernel - 1` inputs of the short convolution, [B, W - 1, 3 D].
      mean: Sum [B, 1, 1, D] and count [B, 1, 1] of the history's inputs; None without a gate.
      pending: The last `delay` events' `Write`s, which the memory has still to take; None without a
        delay.
    """

    memory: Float[Array, "B H K V"]
    convolution: Float[Array, "B W-1 E"]
    mean: LinearAttentionState | None
    pending: Recent | None


class TADN(GatedDelta):
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

        "write"      v <- s v: the write is s β, the erase β.
        "retention"  α <- s α: how far the past is trusted, beside β, the write's strength.
        "erase"      the erase is s β, the write β. The rule has one β, so β <- s β and v <- v / s:
                     a write without an erase cannot be said without a division. Hence s is kept
                     away from 0: s = 0.01 + 0.99 σ(..).
        "beta"       β <- s β: both.
        "none"       nothing; there is no gate.

    Δ is what the caller takes for the days since the event before (`gaps_taken`); without `timed`
    there is no T, and Δ is not read. Where request times are known, the fading runs on to the
    request: RMSNorm(o) is multiplied by exp(-(request - τ_t) / T).

    With `delay` the memory is so many events late: event t reads it as event t - delay left it,
    faded until now. k, v, β, s and the decay by W_α are event j = t - delay's at the step that
    writes it, Δ is event t's own, and so that the time from j to t counts too,
    v <- exp(-(τ_t - τ_j) / T) v. The rule is linear in memory and values together, so this is
    exactly exp(-(τ_t - τ_j) / T) times the memory that event j left without a delay. Of the last
    `delay` events only the question enters: q, that is event t and the taps of the convolution
    before it, and the output gate.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        gate: Gate = "write",
        timed: bool = True,
        delay: int = 0,
        kernel: int = 4,
        chunk_size: int = 64,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args: `heads` divide the width; `kernel` is the convolution's taps; `delay` in events."""
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
        self.gate, self.delay = gate, delay
        self.spike_gate = (
            None if gate == "none" else gate_logits(2 * width, heads, bias=True, rngs=rngs)
        )
        if self.spike_gate is not None and gate == "retention":
            self.spike_gate.bias = nnx.Param(jnp.full((heads,), _TRUST))
        self.log_horizon = nnx.Param(initial_log_horizon(heads, rngs=rngs)) if timed else None

    def __call__(
        self,
        x: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"],
        gaps: Float[Array, "B T"],
        state: TADNState | None = None,
        *,
        question: Float[Array, "B T D"] | None = None,
        age: Float[Array, "B T"] | None = None,
        wait: Float[Array, "B T"] | None = None,
    ) -> tuple[Float[Array, "B T D"], TADNState]:
        """Mixes a row's events over time.

        Args:
          x: Normalised inputs: what the memory is written from.
          segment_ids: One id from 1 per history; 0 is padding.
          gaps: Days before each event, float32.
          state: The past of each row's first segment; None is no past.
          question: Normalised inputs that q and the output gate are made of; None: x.
          age: Days since the event `delay` before, float32; where timed and delayed.
          wait: Days from each event to the request after it, float32; None where it is hidden.

        Returns:
          The mixed values, and the state after each row's last segment.
        """
        inputs, convolution, mean, pending = self.inputs(
            x, segment_ids, gaps, state, question=question, age=age
        )
        output, memory = self.remember(inputs, segment_ids, None if state is None else state.memory)
        state = TADNState(memory, convolution, mean, pending)
        left = left_at_request(wait, None if self.log_horizon is None else self.log_horizon[...])
        return self.emit(output, x if question is None else question, left), state

    def inputs(
        self,
        x: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"],
        gaps: Float[Array, "B T"],
        state: TADNState | None,
        *,
        question: Float[Array, "B T D"] | None = None,
        age: Float[Array, "B T"] | None = None,
    ) -> tuple[DeltaInputs, Float[Array, "B W-1 E"], LinearAttentionState | None, Recent | None]:
        """What goes into the rule, and the state of all but the memory, in its order."""
        query, key, value, convolution = self.project(
            x, segment_ids, None if state is None else state.convolution, question
        )
        spike, mean = self.spike_logits(x, segment_ids, None if state is None else state.mean)
        write, pending = self.late(
            Write(unit(key), value, *self.gates(x), spike),
            segment_ids,
            None if state is None else state.pending,
        )
        value, log_decay, beta = self._weigh(write)
        if self.log_horizon is not None:
            log_decay = log_decay + log_fading(gaps, self.log_horizon[...])
            if self.delay:
                assert age is not None, "a memory that is late and fades reads ages"
                left = jnp.exp(log_fading(age, self.log_horizon[...]))
                value = (left[..., None] * value).astype(value.dtype)
        query = unit(query) * self.key_width**-0.5
        inputs = DeltaInputs(query, write.key, value, log_decay, beta)
        return inputs, convolution, mean, pending

    def spike_logits(
        self,
        x: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"],
        state: LinearAttentionState | None,
    ) -> tuple[Float[Array, "B T H"] | None, LinearAttentionState | None]:
        """What s is the sigmoid of, and the sums that the next call's mean goes on from."""
        if self.spike_gate is None:
            return None, None
        mean, state = running_mean(x, segment_ids=segment_ids, initial_state=state)
        return self.spike_gate(jnp.concatenate([x, x - mean], axis=-1)), state

    def late(
        self, write: Write, segment_ids: Int[Array, "B T"], pending: Recent | None
    ) -> tuple[Write, Recent | None]:
        """The writes of the events `delay` before, 0 where there are none; and the last ones."""
        if not self.delay:
            return write, None
        return delayed(write, self.delay, segment_ids=segment_ids, recent=pending)

    def _weigh(
        self, write: Write
    ) -> tuple[Float[Array, "B T H V"], Float[Array, "B T H"], Float[Array, "B T H"]]:
        """Values, the logarithm of α and β as the gate has them."""
        value, log_decay, beta = write.value, write.log_decay, write.beta
        if write.spike is None:
            return value, log_decay, beta
        if self.gate == "retention":
            return value, log_decay + jax.nn.log_sigmoid(write.spike), beta
        share = jax.nn.sigmoid(write.spike)
        if self.gate == "write":
            return (share[..., None] * value).astype(value.dtype), log_decay, beta
        if self.gate == "erase":
            share = _erase_share(share)
            return (value / share[..., None]).astype(value.dtype), log_decay, share * beta
        return value, log_decay, share * beta

    def written(
        self, beta: Float[Array, "B T H"], share: Float[Array, "B T H"] | None
    ) -> Float[Array, "B T H"]:
        """How much of its value each event writes, of the β that the rule was given and s."""
        if share is None or self.gate in ("retention", "beta"):
            return beta
        return share * beta if self.gate == "write" else beta / _erase_share(share)


def _erase_share(share: Float[Array, "B T H"]) -> Float[Array, "B T H"]:
    return _LEAST_ERASE + (1 - _LEAST_ERASE) * share
