"""TADN: a gated delta memory whose decay knows the time (HyTRec, arXiv 2602.18283)."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from linseqrec.layers.gated_delta import DeltaInputs, GatedDelta, delta_trace
from linseqrec.layers.standard import GateLogits, unit_length
from linseqrec.layers.states import (
    MixerTrace,
    PartState,
    Stateless,
    empty,
    empty_recent,
    past_or_none,
    record,
)
from linseqrec.layers.time_gaps import (
    Clock,
    Horizon,
    initial_log_horizon,
    left_at_request,
    log_fading,
)
from linseqrec.ops.linear_attention import LinearAttentionState
from linseqrec.ops.recent import Recent, delayed
from linseqrec.ops.running_mean import running_mean

GateKind = Literal["write", "retention", "erase", "beta", "none"]

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
      spike: float32, the logits of the gate s; () without a gate.
    """

    key: Float[Array, "B T H K"]
    value: Float[Array, "B T H V"]
    log_decay: Float[Array, "B T H"]
    beta: Float[Array, "B T H"]
    spike: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TADNState:
    """What the mixer carries from one call to the next, of a size that no history changes.

    Attributes:
      memory: [B, H, K, V], float32.
      convolution: The last `kernel - 1` inputs of the short convolution, [B, W - 1, H (2 K + V)].
      mean: Sum [B, 1, 1, D] and count [B, 1, 1] of the history's inputs; () without a gate.
      pending: The last `delay` events' `Write`s, which the memory has still to take; () without a
        delay.
    """

    memory: Float[Array, "B H K V"]
    convolution: Float[Array, "B P E"]
    mean: PartState
    pending: PartState


class TADN(GatedDelta):
    """Mixes a history's events through a memory that fades with the days between them.

        q, k, v = SiLU(conv(W_qkv x));  q = q / |q| / √K;  k = k / |k|            per head
        β = σ(W_β x)
        log α = -e^a softplus(W_α x + b) - Δ / T                                  T = e^c, in days
        s = σ(W_s [x; x - mean(x_1..x_t)] + b_s)                                  one per head
        o = gated_delta_rule(q, k, v, log α, β), gated by s
        y = W_o (RMSNorm(o) ⊙ SiLU(W_g x))

    From the abstract of HyTRec: a delta network with a decay over time, and a gate that weighs the
    past against the current event (the "spike"). All equations are ours. The decay over the gaps
    weights each write by exp(-(now - then) / T), where "now" is the time of the reading event. So
    all positions of a row train at once. A long gap also makes all readings smaller; RMSNorm undoes
    this for readings well above its epsilon.

    The rule writes S += k (β v - β Sᵀk)ᵀ: it writes β v and erases β Sᵀk. `gate` decides what s
    scales:

        "write"      v <- s v: the write is s β, the erase β.
        "retention"  α <- s α: how far the past is trusted, beside β, the write's strength.
        "erase"      the erase is s β, the write β. The rule has one β, so β <- s β and v <- v / s:
                     a write without an erase cannot be said without a division. Hence s is kept
                     away from 0: s = 0.01 + 0.99 σ(..).
        "beta"       β <- s β: both.
        "none"       nothing; there is no gate.

    Δ is the number of days since the event before, or a control in its place (`gaps_taken`).
    Without `timed`, T = ∞ and Δ has no effect. If request times are known, the memory also fades
    from event t to its request: exp(-(request - τ_t) / T) multiplies RMSNorm(o).

    With `delay`, event t reads the memory after event j = t - delay, faded until t. The step of
    event t writes event j: k, v, β, s and the decay by W_α are those of j, but Δ is that of t. The
    factor exp(-(τ_t - τ_j) / T) on v accounts for the time from j to t. The rule is linear in the
    memory and the values together, so the result is exactly exp(-(τ_t - τ_j) / T) times the memory
    after event j without a delay. Of the last `delay` events, the layer reads only event t (by q
    and the output gate) and the events before it that the convolution of q reaches.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        key_width: int,
        value_width: int,
        gate: GateKind = "write",
        timed: bool = True,
        delay: int = 0,
        kernel: int = 4,
        chunk_size: int = 64,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args: widths are a head's; `kernel` is the convolution's taps; `delay` in events."""
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
        self.gate = gate
        self.late = NoDelay() if delay == 0 else Delay(delay)
        self.spike_gate = NoSpikeGate() if gate == "none" else SpikeGate(width, heads, rngs=rngs)
        if isinstance(self.spike_gate, SpikeGate) and gate == "retention":
            self.spike_gate.bias = nnx.Param(jnp.full((heads,), _TRUST))
        self.log_horizon = nnx.Param(initial_log_horizon(heads, rngs=rngs)) if timed else math.inf

    def initial_state(self, batch_size: int) -> TADNState:
        """The state before any event."""
        slot = Write(
            key=empty(batch_size, 1, self.heads, self.key_width),
            value=empty(batch_size, 1, self.heads, self.value_width),
            log_decay=empty(batch_size, 1, self.heads),
            beta=empty(batch_size, 1, self.heads),
            spike=self.spike_gate.empty_logits(batch_size),
        )
        return TADNState(
            self.empty_memory(batch_size),
            self.convolution.initial_state(batch_size),
            self.spike_gate.initial_state(batch_size),
            self.late.initial_state(batch_size, slot),
        )

    def __call__(
        self,
        x: Float[Array, "B T D"],
        clock: Clock,
        state: TADNState,
        *,
        question: Float[Array, "B T D"] | None = None,
    ) -> tuple[Float[Array, "B T D"], TADNState]:
        """Mixes a row's events over time.

        Args:
          x: Normalised inputs: what the memory is written from.
          clock: Segments, gaps and waits; the age where the memory is late and fades.
          state: The past of each row's first segment.
          question: Normalised inputs that q and the output gate are made of; None: x.

        Returns:
          The mixed values, and the state after each row's last segment.
        """
        ids = clock.segment_ids
        query, key, value, convolution = self.project(x, ids, state.convolution, question)
        spike, mean = self.spike_gate(x, ids, state.mean)
        write, pending = self.late.take(
            Write(unit_length(key), value, *self.gates(x), spike), ids, state.pending
        )
        value, log_decay, beta = _WEIGH[self.gate](write)
        inputs = DeltaInputs(
            unit_length(query) * self.key_width**-0.5,
            write.key,
            self.late.fade(value, clock.age, self.log_horizon),
            log_decay + log_fading(clock.gaps, self.log_horizon),
            beta,
        )
        output, memory = self.remember(inputs, ids, state.memory)
        record(
            self,
            lambda: dataclasses.replace(self._trace(inputs, memory, write), delay=self.late.events),
        )
        left = left_at_request(clock.wait, self.log_horizon)
        mixed = self.emit(output, x if question is None else question, left)
        return mixed, TADNState(memory, convolution, mean, pending)

    def _trace(
        self, inputs: DeltaInputs, memory: Float[Array, "B H K V"], write: Write
    ) -> MixerTrace:
        if self.gate == "none":
            return delta_trace(inputs, memory, inputs.beta)
        share = jax.nn.sigmoid(write.spike)
        written = {
            "write": lambda: share * inputs.beta,
            "erase": lambda: inputs.beta / _erase_share(share),
        }.get(self.gate, lambda: inputs.beta)
        return delta_trace(inputs, memory, written(), spike=share)


class SpikeGate(GateLogits):
    """W_s [x; x - mean(x_1..x_t)] + b_s: how far an event departs from its history's mean."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        super().__init__(2 * width, heads, bias=True, rngs=rngs)

    def initial_state(self, batch_size: int) -> LinearAttentionState:
        """The sums of the mean before any event."""
        return LinearAttentionState(
            empty(batch_size, 1, 1, self.in_features // 2), empty(batch_size, 1, 1)
        )

    def empty_logits(self, batch_size: int) -> Float[Array, "B 1 H"]:
        """The logits of a slot without an event."""
        return empty(batch_size, 1, self.out_features)

    def __call__(  # type: ignore[override]
        self,
        x: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"],
        state: LinearAttentionState,
    ) -> tuple[Float[Array, "B T H"], LinearAttentionState]:
        """What s is the sigmoid of, and the sums that the next call's mean goes on from."""
        mean, state = running_mean(x, segment_ids=segment_ids, initial_state=past_or_none(state))
        return super().__call__(jnp.concatenate([x, x - mean], axis=-1)), state


class NoSpikeGate(Stateless):
    """Stands for `SpikeGate` where nothing weighs the past against the event."""

    def empty_logits(self, batch_size: int) -> tuple[()]:
        """Nothing."""
        del batch_size
        return ()

    def __call__(
        self, x: Float[Array, "B T D"], segment_ids: Int[Array, "B T"], state: tuple[()]
    ) -> tuple[tuple[()], tuple[()]]:
        """Nothing."""
        del x, segment_ids
        return (), state


class Delay(nnx.Module):
    """A memory that takes each write `events` events late, faded since."""

    def __init__(self, events: int):
        self.events = events

    def initial_state(self, batch_size: int, slot: Write) -> Recent:
        """The pending writes before any event; `slot` is one of them, [B, 1, ...]."""
        writes = jax.tree.map(lambda part: np.repeat(part, self.events, axis=1), slot)
        return empty_recent(batch_size, writes)

    def take(
        self, write: Write, segment_ids: Int[Array, "B T"], pending: Recent
    ) -> tuple[Write, Recent]:
        """The writes `events` events back, 0 where there are none; and the last ones."""
        return delayed(write, self.events, segment_ids=segment_ids, recent=past_or_none(pending))

    def fade(
        self,
        value: Float[Array, "B T H V"],
        age: Float[Array, "B T"],
        log_horizon: Horizon,
    ) -> Float[Array, "B T H V"]:
        """The values, faded over the time since their events."""
        left = jnp.exp(log_fading(age, log_horizon))
        return (left[..., None] * value).astype(value.dtype)


class NoDelay(nnx.Module):
    """Stands for `Delay` where an event is written at once."""

    events = 0

    def initial_state(self, batch_size: int, slot: Write) -> tuple[()]:
        """Nothing."""
        del batch_size, slot
        return ()

    def take(
        self, write: Write, segment_ids: Int[Array, "B T"], pending: tuple[()]
    ) -> tuple[Write, tuple[()]]:
        """The writes as they are."""
        del segment_ids
        return write, pending

    def fade(
        self,
        value: Float[Array, "B T H V"],
        age: Float[Array, "B T"],
        log_horizon: Horizon,
    ) -> Float[Array, "B T H V"]:
        """The values as they are."""
        del age, log_horizon
        return value


# Value, log-decay and β of a write, as the gate has them.
Weighed = tuple[Float[Array, "B T H V"], Float[Array, "B T H"], Float[Array, "B T H"]]


def _weigh_write(write: Write) -> Weighed:
    share = jax.nn.sigmoid(write.spike)
    return (share[..., None] * write.value).astype(write.value.dtype), write.log_decay, write.beta


def _weigh_retention(write: Write) -> Weighed:
    return write.value, write.log_decay + jax.nn.log_sigmoid(write.spike), write.beta


def _weigh_erase(write: Write) -> Weighed:
    share = _erase_share(jax.nn.sigmoid(write.spike))
    value = (write.value / share[..., None]).astype(write.value.dtype)
    return value, write.log_decay, share * write.beta


def _weigh_beta(write: Write) -> Weighed:
    return write.value, write.log_decay, jax.nn.sigmoid(write.spike) * write.beta


def _weigh_nothing(write: Write) -> Weighed:
    return write.value, write.log_decay, write.beta


_WEIGH: dict[GateKind, Callable[[Write], Weighed]] = {
    "write": _weigh_write,
    "retention": _weigh_retention,
    "erase": _weigh_erase,
    "beta": _weigh_beta,
    "none": _weigh_nothing,
}


def _erase_share(share: Float[Array, "B T H"]) -> Float[Array, "B T H"]:
    return _LEAST_ERASE + (1 - _LEAST_ERASE) * share
