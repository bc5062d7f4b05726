"""RELA: rotary-enhanced linear attention with its local branch (arXiv 2506.13315)."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from linseqrec.layers.dense import dense
from linseqrec.layers.short_convolution import ShortConvolution
from linseqrec.ops.convolution import short_convolution
from linseqrec.ops.linear_attention import LinearAttentionState, linear_attention
from linseqrec.ops.rotary import rotary

Selector = Literal["silu", "convex"]

# Standard deviation and minus the mean of the numbers that φ is taken of in a fresh lookup.
# Untrained, a head of width 64 finds one event among 120 in 41 % of cases; with 2 and 2 in 18 %.
_SHARPNESS, _SPARSITY = 3.0, 4.0
# The answer is one event in a mean over many: at ½ the residual stream would drown it.
_GAIN = 8.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RELAState:
    """What a RELA mixer carries from one call to the next.

    Attributes:
      attention: Sums over the past: Σ k vᵀ [B, H, K, V] and Σ φ(k) [B, H, K], float32.
      convolution: The last `kernel - 1` inputs of the local branch, [B, W - 1, D]; None without it.
      previous: The last event's X, [B, 1, D], for the next key of a lookup; None without it.
    """

    attention: LinearAttentionState
    convolution: Array | None
    previous: Array | None


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
    about 1/N, however short the history is, and o says how often something happened. The causal
    form sums over the events up to m: o is a running mean, which says how large a share it had.
    `denominator_events=N` (ours) gives the causal form the released denominator. It counts the
    N − m slots that the history has not filled yet, each with the features φ(0) = 1:

        o_m = Σ_{n≤m} ⟨q̃_m, k̃_n⟩ v_n / (Σ_{n≤m} ⟨φ(q_m), φ(k_n)⟩ + max(N − m, 0) ⟨φ(q_m), 1⟩ + ε)

    with m = 1 for a history's first event. In the released code such a slot holds the padding
    item's own key. From event N on, o is the running mean again.

    `lookup=True` (ours, causal form only) starts each head as the question "what followed this item
    before?", whose answer is an item's own vector. Starting values alone cannot ask it: the key of
    an event and its value are the same item. Two learned taps a feature, c_0 = 1 and c_1 = 0 at the
    start, therefore give event n the key of the event before it,

        k_n = W_k (c_0 ⊙ X_{n−1} + c_1 ⊙ X_n) + b_k

    The other starting values are in `_start_as_lookup`. A lookup needs `rotation=False`: rotated,
    a key that is many events old no longer matches its query.
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
        kernel: int = 4,
        denominator_events: int | None = None,
        lookup: bool = False,
        epsilon: float = 1e-6,
        deviation: float | None = None,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Args: `deviation` is that of fresh kernels (see `dense`)."""
        self.width, self.heads, self.causal = width, heads, causal
        self.epsilon, self.rotation, self.dtype = epsilon, rotation, dtype
        self.denominator_events = denominator_events
        make = lambda outputs: dense(  # noqa: E731
            width, outputs, deviation=deviation, dtype=dtype, rngs=rngs
        )
        self.gate = make(width) if gate else None
        self.input_gate = make(width) if input_gate else None
        self.query_key = make(2 * width)
        self.value = make(width) if value_projection else None
        self.output = make(width)
        self.selector = make(width) if selector == "convex" else None
        self.shortcut = ShortConvolution(width, kernel, rngs=rngs) if shortcut else None
        taps = jnp.stack([jnp.ones(width), jnp.zeros(width)])
        self.key_taps = nnx.Param(taps) if lookup else None
        if lookup:
            self._start_as_lookup(rngs)

    def _start_as_lookup(self, rngs: nnx.Rngs) -> None:
        """Sets what a lookup starts with.

        - W_k = W_q: an item's key is the query that finds it.
        - Columns of W_q of length `_SHARPNESS`, and biases of −`_SPARSITY`: φ is nearly 0 for most
          features, and large for a few. Near φ(0) = 1 all items have the same features.
        - W_2 = I and W_3 = `_GAIN` · I: what is read is an item's normalised vector, which the tied
          scores understand. The local branch starts with the current event alone.
        - b_1 = 1: the output gate starts open. SiLU(0) is 0, and passes nothing on.
        """
        width = self.width
        query = _SHARPNESS / width**0.5 * jax.random.normal(rngs.params(), (width, width))
        self.query_key.kernel = nnx.Param(jnp.concatenate([query, query], axis=1))
        self.query_key.bias = nnx.Param(jnp.full(2 * width, -_SPARSITY))
        for layer, gain in ((self.input_gate, 1.0), (self.value, 1.0), (self.output, _GAIN)):
            if layer is not None:
                layer.kernel = nnx.Param(gain * jnp.eye(width))
        if self.gate is not None:
            self.gate.bias = nnx.Param(jnp.ones(width))
        if self.shortcut is not None:
            taps = self.shortcut.weight.shape
            self.shortcut.weight = nnx.Param(jnp.zeros(taps).at[-1].set(1))
            self.shortcut.bias = nnx.Param(jnp.zeros(width))

    def __call__(
        self,
        x: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        state: RELAState | None = None,
    ) -> tuple[Float[Array, "B T D"], RELAState | None]:
        """Mixes a row's events over time.

        Args:
          x: Normalised inputs.
          segment_ids: One id from 1 per history; 0 is padding. The released form (`causal=False`)
            does not look at them: it sums over every slot.
          positions: Positions within the history, from 0: for the rotation and the denominator.
          state: The past of each row's first segment; None is no past. Causal form only.

        Returns:
          The mixed values, and the state after each row's last segment (None if not causal).
        """
        mixed = x if self.input_gate is None else self.input_gate(x)
        keyed, previous = None, None
        if self.key_taps is not None:
            keyed, previous = short_convolution(
                mixed,
                self.key_taps[...].astype(mixed.dtype),
                segment_ids=segment_ids,
                state=None if state is None else state.previous,
            )
        attended, attention = self.attend(
            mixed, segment_ids, positions, None if state is None else state.attention, keyed
        )
        output, convolution = attended, None
        if self.shortcut is not None:
            local, convolution = self.shortcut(
                mixed,
                segment_ids if self.causal else None,
                None if state is None else state.convolution,
            )
            output = self.augment(x, attended, local)
        if self.gate is not None:
            output = jax.nn.silu(self.gate(x)) * output
        after = RELAState(attention, convolution, previous) if self.causal else None
        return self.output(output), after

    def attend(
        self,
        mixed: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        past: LinearAttentionState | None,
        keyed: Float[Array, "B T D"] | None = None,
    ) -> tuple[Float[Array, "B T D"], LinearAttentionState]:
        """The linear attention's branch o, heads side by side, and its sums over the past.

        `keyed` is what keys are made of; None is `mixed`.
        """
        query, key, rotated_query, rotated_key = self.features(mixed, positions, keyed)
        value = mixed if self.value is None else self.value(mixed)
        # The released code divides by the number of slots throughout, so its ε counts once a slot.
        slots = 1 if self.causal else mixed.shape[1]
        epsilon: float | Array = self.epsilon * slots
        if self.denominator_events is not None:
            unfilled = jnp.maximum(self.denominator_events - 1 - positions, 0)
            epsilon = epsilon + unfilled[..., None] * jnp.sum(query, axis=-1, dtype=jnp.float32)
        attended, after = linear_attention(
            rotated_query,
            rotated_key,
            self._split(value),
            denominator_query=query,
            denominator_key=key,
            causal=self.causal,
            segment_ids=segment_ids if self.causal else None,
            epsilon=epsilon,
            initial_state=past,
        )
        return attended.reshape(mixed.shape), after

    def features(
        self,
        mixed: Float[Array, "B T D"],
        positions: Int[Array, "B T"],
        keyed: Float[Array, "B T D"] | None = None,
    ) -> tuple[Float[Array, "B T H K"], ...]:
        """φ(q), φ(k), q̃ and k̃, in heads; keys of `keyed`, where it is given."""
        query, key = jnp.split(jax.nn.elu(self.query_key(mixed)) + 1, 2, axis=-1)
        if keyed is not None:
            _, key = jnp.split(jax.nn.elu(self.query_key(keyed)) + 1, 2, axis=-1)
        rotated = (
            (rotary(query, positions), rotary(key, positions)) if self.rotation else (query, key)
        )
        return tuple(self._split(part) for part in (query, key, *rotated))

    def augment(
        self,
        x: Float[Array, "B T D"],
        attended: Float[Array, "B T D"],
        local: Float[Array, "B T D"],
    ) -> Float[Array, "B T D"]:
        """The two branches joined: the local one raises the rank of the other."""
        if self.selector is None:
            return attended + local
        share = jax.nn.sigmoid(self.selector(x))
        return share * attended + (1 - share) * local

    def _split(self, x: Float[Array, "B T D"]) -> Float[Array, "B T H K"]:
        return x.reshape(*x.shape[:2], self.heads, self.width // self.heads)
