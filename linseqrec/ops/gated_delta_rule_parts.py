"""What the forms of the gated delta rule share: inputs, products, and what is local to a chunk.

Axes: B batch, T time, H heads, K key width, V value width, C chunk.

With G_r the sum of the log-decays up to slot r of a chunk, D_ri = exp(G_r - G_i) for i <= r and
S the state before the chunk:

    L = StrictLower(diag(beta) D * K Kᵀ)
    U = (I + L)^-1 diag(beta) (V - diag(e^G) K S)
    O = diag(e^G) Q S + (D * Q Kᵀ) U
    S' = e^G_C S + (diag(e^(G_C - G)) K)ᵀ U

G is summed in two floats: the difference of two sums in one loses decays over days of absence.
A segment's boundary is a mask: D_ri is 0 where r and i are of different runs, and e^G is 0 where
the slot is not of the run that the carried state belongs to. `decayed_linear_attention` has the
same decays.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

# A log-decay that forgets everything in any float dtype. It is finite: masks multiply it by 0, and
# sums of it have differences.
FORGET = -1e3


class Inputs(NamedTuple):
    """What goes in, [B, T, H, ...]; or a chunk with heads before time, [..., B, H, C, ...]."""

    query: Array
    key: Array
    value: Array
    log_decay: Array
    beta: Array


einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def einsum_for(dtype: DTypeLike) -> Callable[..., Array]:
    """The einsum for products of inputs of this dtype, and of numbers computed from them."""
    # bfloat16 inputs are exact in TF32 (11 bits). TF32 rounds the numbers computed from them eight
    # times finer than bfloat16, which would double the errors of the outputs.
    if jnp.finfo(dtype).bits < 32:
        return functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGH)
    return einsum


def widen(x: Inputs) -> Inputs:
    """All inputs in the dtype of the gates, which is float32 at least."""
    return jax.tree.map(lambda a: a.astype(x.beta.dtype), x)


class Chunk(NamedTuple):
    """What the slots [..., B, H, C] of a chunk are to each other and to the chunk's edges.

    Attributes:
      decay: D, how much of what slot i wrote is left at slot r, [..., C, C].
      scores: D * Q Kᵀ.
      gram: D * K Kᵀ, strictly lower.
      reads: e^G, how much of the carried state is left at each slot, [..., C].
      writes: e^(G_C - G), how much of each slot's update is left at the last, [..., C].
    """

    decay: Array
    scores: Array
    gram: Array
    reads: Array
    writes: Array


def _sum_in_two_floats(x: Float[Array, "... C"]) -> tuple[Array, Array]:
    """Cumulative sums to twice a float's digits: an exact sum of rounded terms, and of the rest."""
    size = x.shape[-1]
    up_to = jnp.tril(jnp.ones((size, size), x.dtype))
    # Rounded to the last digit of a number that no sum of C terms exceeds, terms add up exactly.
    large = 2 * size * jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    rounded = (x + large) - large
    high, low = (einsum("rj,...j->...r", up_to, part) for part in (rounded, x - rounded))
    return high, low


class Decays(NamedTuple):
    """What is left between the slots [..., B, H, C] of a chunk and at its edges.

    Attributes:
      between: D, how much of what slot i wrote is left at slot r, [..., C, C].
      reads: e^G, how much of the carried state is left at each slot, [..., C].
      writes: e^(G_C - G), how much of what each slot wrote is left at the last, [..., C].
    """

    between: Array
    reads: Array
    writes: Array


@jax.custom_vjp
def chunk_decays(
    log_decay: Float[Array, "... B H C"],
    runs: Int[Array, "... B C"],
    carried: Int[Array, "... B"],
) -> Decays:
    """How much is left of one slot's write at another; nothing across segments.

    Args:
      log_decay: The chunks' log-decays, heads before time.
      runs: The run of each slot, [..., B, C] (see segments).
      carried: The run of the state before each chunk, [..., B].
    """
    up_to = jnp.tril(jnp.ones((runs.shape[-1],) * 2, bool))
    same = (runs[..., :, None] == runs[..., None, :])[..., None, :, :]
    high, low = _sum_in_two_floats(log_decay)
    between = high[..., :, None] - high[..., None, :] + (low[..., :, None] - low[..., None, :])
    # Above the diagonal exp would overflow, and 0 times its infinity poison gradients.
    decay = jnp.where(up_to & same, jnp.exp(jnp.where(up_to, between, 0)), 0)
    since_start = jnp.exp(high + low)
    reads = jnp.where((runs == carried[..., None])[..., None, :], since_start, 0)
    return Decays(decay, reads, writes=decay[..., -1, :])


def _chunk_decays_forward(
    log_decay: Float[Array, "... B H C"],
    runs: Int[Array, "... B C"],
    carried: Int[Array, "... B"],
) -> tuple[Decays, Decays]:
    decays = chunk_decays(log_decay, runs, carried)
    return decays, decays


def _chunk_decays_backward(
    decays: Decays, d_decays: Decays
) -> tuple[Float[Array, "... B H C"], None, None]:
    # The gradient of an exponent is the exponential times the exponential's gradient.
    return log_decay_gradient(*map(jnp.multiply, decays, d_decays)), None, None


chunk_decays.defvjp(_chunk_decays_forward, _chunk_decays_backward)


def log_decay_gradient(
    between: Float[Array, "... H C C"],
    reads: Float[Array, "... H C"],
    writes: Float[Array, "... H C"],
) -> Float[Array, "... H C"]:
    """The gradient of a chunk's log-decays, from those of the exponents of `Decays`.

    It is the sum over all pairs of slots with the log-decay between them. A difference of two sums,
    as in the forward pass, would leave a rounding error where a memory that forgot everything has a
    gradient of 0; the gradient of a horizon multiplies this error by the gap.
    """
    up_to = jnp.tril(jnp.ones((between.shape[-1],) * 2, between.dtype))
    pairs = between.at[..., -1, :].add(writes).at[..., 0].add(reads)
    later = einsum("rj,...ri->...ji", up_to, pairs)
    gradient = jnp.sum(jnp.tril(later, -1), axis=-1)
    return gradient.at[..., 0].add(jnp.sum(reads, axis=-1))


def chunk_terms(
    x: Inputs, runs: Int[Array, "... B C"], carried: Int[Array, "... B"], dot: Callable[..., Array]
) -> Chunk:
    """What the slots of chunks are to each other.

    Args:
      x: The chunks' inputs, heads before time: [..., B, H, C, ...].
      runs: The run of each slot, [..., B, C] (see segments).
      carried: The run of the state before each chunk, [..., B].
      dot: The einsum of queries and keys, of `einsum_for`.
    """
    decay, reads, writes = chunk_decays(x.log_decay, runs, carried)
    return Chunk(
        decay=decay,
        scores=decay * dot("...rk,...ik->...ri", x.query, x.key),
        gram=jnp.tril(decay * dot("...rk,...ik->...ri", x.key, x.key), -1),
        reads=reads,
        writes=writes,
    )
