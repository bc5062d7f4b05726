"""RELA: rotary-enhanced linear attention with its local branch (arXiv 2506.13315)."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from linseqrec.layers.short_convolution import NoConvolution, ShortConvolution
from linseqrec.layers.standard import Dense, Gate, Identity
from linseqrec.layers.states import MixerTrace, PartState, empty, past_or_none, record
from linseqrec.ops.convolution import short_convolution
from linseqrec.ops.linear_attention import LinearAttentionState, linear_attention
from linseqrec.ops.rotary import rotary

Selector = Literal["silu", "convex"]

# In a fresh lookup, the inputs of φ have the standard deviation `_SHARPNESS` and the mean
# -`_SPARSITY`. An untrained head of width 64 then finds one event among 120 in 41 % of cases. With
# 2.0 for both it is 18 %.
_SHARPNESS, _SPARSITY = 3.0, 4.0
# The reading is a mean over many events, of which one is the answer. The ½ of `copy_kernel` would
# make it too small beside the residual stream.
_GAIN = 8.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RELAState:
    """What a RELA mixer carries from one call to the next.

    Attributes:
      attention: Sums over the past: Σ k vᵀ [B, H, K, V] and Σ φ(k) [B, H, K], float32.
      convolution: The last 3 inputs of the local branch, [B, 3, D]; () without it.
      previous: The last event's X, [B, 1, D], for the next key of a `LookupRELA`; else ().
    """

    attention: LinearAttentionState
    convolution: PartState
    previous: PartState


class RELA(nnx.Module):
    """The attention half of a RecGRELA block, without its norm and residual.

        G = SiLU(W_1 x + b_1);  X = W_2 x + b_2
        q, k = split(W_qk X + b_qk);  v = X;  q̃, k̃ = R(φ(q)), R(φ(k)),  φ = ELU + 1
        o_m = Σ_n ⟨q̃_m, k̃_n⟩ v_n / (Σ_n ⟨φ(q_m), φ(k_n)⟩ + ε)              per head
        y = W_3 (G ⊙ select(o, SiLU(conv_4(X)))) + b_3

    The rotation runs over the full width before the head split, and touches the numerator only.
    `selector="silu"` adds the two branches and lets G choose (the published form);
    `"convex"` (ours, for the gated rank selector of the latest abstract) mixes them with a learned
    gate g = σ(W_s x + b_s) first: g ⊙ o + (1 − g) ⊙ S.

    The released form sums the denominator over all N slots of a row. A past event therefore weighs
    about 1/N, however short the history is, and o grows with the number of events that match q. The
    causal form sums over the events up to m: o is a mean, and depends on their share instead.
    `denominator_events=N` (ours) gives the causal form the released denominator. It counts the
    N − m slots that the history has not filled yet, each with the features φ(0) = 1:

        o_m = Σ_{n≤m} ⟨q̃_m, k̃_n⟩ v_n / (Σ_{n≤m} ⟨φ(q_m), φ(k_n)⟩ + max(N − m, 0) ⟨φ(q_m), 1⟩ + ε)

    with m = 1 for a history's first event. In the released code such a slot holds the padding
    item's own key. From event N on, o is the running mean again.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        causal: bool = True,
        selector: Selector = "silu",
        gate: bool = True,
        input_gate: bool = True,
        shortcut: bool = True,
        rotation: bool = True,
        value_projection: bool = False,
        denominator_events: int | None = None,
        epsilon: float = 1e-6,
        deviation: float | None = None,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args: `deviation` is that of fresh kernels (see `Dense`)."""
        self.width, self.heads, self.causal, self.epsilon = width, heads, causal, epsilon
        self.empty_slots = (
            _no_empty_slots if denominator_events is None else EmptySlots(denominator_events)
        )
        self.rotate = rotary if rotation else _unrotated
        options: dict[str, Any] = dict(deviation=deviation, dtype=dtype, rngs=rngs)
        self.gate = OutputGate(width, width, **options) if gate else _ungated
        self.input_gate = Gate(width, width, **options) if input_gate else Identity()
        self.query_key = Dense(width, 2 * width, **options)
        self.value = Dense(width, width, **options) if value_projection else Identity()
        self.output = Dense(width, width, **options)
        self.selector = (
            Convex(width, width, **options)
            if selector == "convex"
            else (_sum if shortcut else _attended_alone)
        )
        self.shortcut = ShortConvolution(width, 4, rngs=rngs) if shortcut else NoConvolution()

    def initial_state(self, batch_size: int) -> RELAState:
        """The state before any event."""
        head = self.width // self.heads
        attention = LinearAttentionState(
            empty(batch_size, self.heads, head, head), empty(batch_size, self.heads, head)
        )
        return RELAState(attention, self.shortcut.initial_state(batch_size), ())

    def __call__(
        self,
        x: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"] | None,
        positions: Int[Array, "B T"],
        state: RELAState,
    ) -> tuple[Float[Array, "B T D"], RELAState]:
        """Mixes a row's events over time.

        Args:
          x: Normalised inputs.
          segment_ids: One id from 1 per history; 0 is padding. None, for the released form: every
            slot is an event of one segment.
          positions: Positions within the history, from 0: for the rotation and the denominator.
          state: The past of each row's first segment.

        Returns:
          The mixed values, and the state after each row's last segment.
        """
        mixed = self.input_gate(x)
        query, key, previous = self.query_and_key(mixed, segment_ids, state.previous)
        rotated_query, rotated_key = map(
            self._split, (self.rotate(query, positions), self.rotate(key, positions))
        )
        query, key = self._split(query), self._split(key)
        # The released code divides by the number of slots throughout, so its ε counts once a slot.
        slots = 1 if self.causal else x.shape[1]
        attended, attention = linear_attention(
            rotated_query,
            rotated_key,
            self._split(self.value(mixed)),
            denominator_query=query,
            denominator_key=key,
            causal=self.causal,
            segment_ids=segment_ids,
            epsilon=self.epsilon * slots + self.empty_slots(query, positions),
            initial_state=past_or_none(state.attention),
        )
        attended = attended.reshape(x.shape)
        local, convolution = self.shortcut(mixed, segment_ids, state.convolution)
        selected = self.selector(x, attended, local)
        record(self, lambda: self._trace(rotated_key, attention, attended, selected))
        output = self.output(self.gate(x, selected))
        return output, RELAState(attention, convolution, previous)

    def query_and_key(
        self,
        mixed: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"] | None,
        previous: PartState,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B T D"], PartState]:
        """φ(q) and φ(k), and what the next call's keys go on from: nothing."""
        del segment_ids
        query, key = jnp.split(_phi(self.query_key(mixed)), 2, axis=-1)
        return query, key, previous

    def _split(self, x: Float[Array, "B T D"]) -> Float[Array, "B T H K"]:
        return x.reshape(*x.shape[:2], self.heads, self.width // self.heads)

    def _trace(
        self,
        keys: Float[Array, "B T H K"],
        attention: LinearAttentionState,
        attended: Float[Array, "B T D"],
        selected: Float[Array, "B T D"],
    ) -> MixerTrace:
        alone = self.selector is _attended_alone
        return MixerTrace(
            keys,
            attention.key_value,
            attended=attended,
            augmented=None if alone else selected,
        )


class LookupRELA(RELA):
    """RELA whose heads start as lookups of the item that followed the current item before (ours).

    In `RELA` the key and the value of an event are the same item, so no starting values make such a
    lookup. Two learned taps per feature, c_0 = 1 and c_1 = 0 at the start, therefore give event n
    the key of the event before it:

        k_n = W_k (c_0 ⊙ X_{n−1} + c_1 ⊙ X_n) + b_k

    The layer is causal. It has no rotation, because a rotated key that is many events old no longer
    matches its query. The other starting values:

    - W_k = W_q: an item's key is the query that finds it.
    - Columns of W_q of length `_SHARPNESS`, and biases of −`_SPARSITY`: φ is nearly 0 for most
      features, and large for a few. Near φ(0) = 1 all items have the same features.
    - W_2 = I and W_3 = `_GAIN` · I: a reading is the normalised vector of an item, so the tied
      table gives this item a high score. The local branch starts with the current event alone.
    - b_1 = 1: the output gate starts open. With b_1 = 0 it would pass nothing, because SiLU(0) = 0.

    Attributes:
      key_taps: c, float32 [2, D]; row 1 multiplies the current event.
    """

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs, **options: Any):
        """Args: as of `RELA`, without `causal` and `rotation`."""
        super().__init__(width, heads, causal=True, rotation=False, rngs=rngs, **options)
        self.key_taps = nnx.Param(jnp.stack([jnp.ones(width), jnp.zeros(width)]))
        query = _SHARPNESS / width**0.5 * jax.random.normal(rngs.params(), (width, width))
        self.query_key.kernel[...] = jnp.concatenate([query, query], axis=1)
        self.query_key.bias = nnx.Param(jnp.full(2 * width, -_SPARSITY))
        for layer, gain in ((self.input_gate, 1.0), (self.value, 1.0), (self.output, _GAIN)):
            if isinstance(layer, Dense):
                layer.kernel[...] = gain * jnp.eye(width)
        if isinstance(self.gate, OutputGate):
            self.gate.bias = nnx.Param(jnp.ones(width))
        if isinstance(self.shortcut, ShortConvolution):
            taps = self.shortcut.weight.shape
            self.shortcut.weight[...] = jnp.zeros(taps).at[-1].set(1)
            self.shortcut.bias = nnx.Param(jnp.zeros(width))

    def initial_state(self, batch_size: int) -> RELAState:
        """The state before any event."""
        return dataclasses.replace(
            super().initial_state(batch_size), previous=empty(batch_size, 1, self.width)
        )

    def query_and_key(
        self,
        mixed: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"] | None,
        previous: PartState,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B T D"], PartState]:
        """φ(q), φ(k) of the event before, and the last event's X."""
        keyed, previous = short_convolution(
            mixed,
            self.key_taps[...].astype(mixed.dtype),
            segment_ids=segment_ids,
            state=past_or_none(previous),
        )
        query, _ = jnp.split(_phi(self.query_key(mixed)), 2, axis=-1)
        _, key = jnp.split(_phi(self.query_key(keyed)), 2, axis=-1)
        return query, key, previous


class OutputGate(Gate):
    """G: SiLU(W_1 x + b_1) ⊙ y."""

    def __call__(  # type: ignore[override]
        self, x: Float[Array, "B T D"], y: Float[Array, "B T D"]
    ) -> Float[Array, "B T D"]:
        """What passes."""
        return jax.nn.silu(super().__call__(x)) * y


class Convex(Gate):
    """The convex selector: g ⊙ o + (1 − g) ⊙ S, g = σ(W_s x + b_s)."""

    def __call__(  # type: ignore[override]
        self,
        x: Float[Array, "B T D"],
        attended: Float[Array, "B T D"],
        local: Float[Array, "B T D"],
    ) -> Float[Array, "B T D"]:
        """The two branches joined."""
        share = jax.nn.sigmoid(super().__call__(x))
        return share * attended + (1 - share) * local


class EmptySlots(nnx.Module):
    """The released form's denominator over the slots that a history has not filled yet."""

    def __init__(self, events: int):
        self.events = events

    def __call__(
        self, query: Float[Array, "B T H K"], positions: Int[Array, "B T"]
    ) -> Float[Array, "B T H"]:
        """max(N − m, 0) ⟨φ(q_m), 1⟩ for the m-th event."""
        unfilled = jnp.maximum(self.events - 1 - positions, 0)
        return unfilled[..., None] * jnp.sum(query, axis=-1, dtype=jnp.float32)


def _phi(x: Float[Array, "B T D2"]) -> Float[Array, "B T D2"]:
    """φ(x) = ELU(x) + 1, as it is defined: `elu(x) + 1` cancels below 0 in bfloat16."""
    # Not `minimum`, which halves the gradient at 0.
    return jnp.where(x > 0, x + 1, jnp.exp(jnp.where(x > 0, 0, x)))


def _unrotated(x: Float[Array, "B T D"], positions: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    del positions
    return x


def _ungated(x: Float[Array, "B T D"], y: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    del x
    return y


def _sum(
    x: Float[Array, "B T D"], attended: Float[Array, "B T D"], local: Float[Array, "B T D"]
) -> Float[Array, "B T D"]:
    """The published selector: the local branch raises the rank of the other, and G chooses."""
    del x
    return attended + local


def _attended_alone(
    x: Float[Array, "B T D"], attended: Float[Array, "B T D"], local: Float[Array, "B T D"]
) -> Float[Array, "B T D"]:
    del x, local
    return attended


def _no_empty_slots(query: Float[Array, "B T H K"], positions: Int[Array, "B T"]) -> float:
    del query, positions
    return 0.0
