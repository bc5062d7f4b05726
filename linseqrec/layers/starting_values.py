"""Starting values with which an untrained head already looks up what followed an item before.

For such a lookup, the query of an event must match the keys of the events that came after the same
item. With random starting values it matches none: four random taps mix four items into every key,
and random projections put queries and keys into unrelated bases. Training takes long to change
this. So a mixer with a short convolution starts as a lookup:

    taps        head h compares x_{t-h} with x_{s-1-h}: its query is one event, its key the event
                before. Its value is the current event. Before a delta memory they are 1/4: SiLU is
                nearly linear there, and keys of unrelated items point nowhere in common. With taps
                of 1 their cosines have a mean of .12, and each write wears off all the others.
    W_k = W_q   queries and keys are compared in the same basis. Its columns are orthonormal (its
                rows, where K > D): keys are no more alike than the items are.
    copy        W_v has orthonormal columns and W_o = W_vᵀ / 2: what a head reads is added to the
                residual as an item's own vector, which the tied scores understand.
    decays      half of a memory is left after 200 events (odd heads: 2,000).
    scales      kernels N(0, 1 / inputs) and item vectors N(0, 1 / D): inputs and outputs of rms 1.

All of this is ours. The released RecGRELA keeps its own values
(`layers/rela.py`).
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

# Events after which a head's memory is halved, in turn.
_HALF_LIVES = (200.0, 2_000.0)
# Of what a head reads, the share that it adds to the residual.
_COPIED = 0.5
# Taps before a delta memory. They can be small, because the mixer normalises keys and readings.
LINEAR = 0.25


def lookup_kernel(
    width: int, heads: int, key_width: int, value_width: int, *, rngs: nnx.Rngs
) -> Float[Array, "D E"]:
    """W_qkv of a lookup: queries of all heads, the same again for the keys, then the values.

    Args:
      width: D.
      heads: H.
      key_width: K, a head's.
      value_width: V, a head's.
      rngs: Randomness.

    Returns:
      float32 [D, H (2 K + V)]; a head's columns are orthonormal (its rows, where K or V > D; those
      of queries are then longer, so that inputs of rms 1 make queries of rms 1).
    """
    orthogonal = nnx.initializers.orthogonal()

    def draw(outputs: int) -> list[Float[Array, "D K"]]:
        return [orthogonal(rngs.params(), (width, outputs)) for _ in range(heads)]

    query = max(1.0, math.sqrt(key_width / width)) * jnp.concatenate(draw(key_width), axis=1)
    return jnp.concatenate([query, query, *draw(value_width)], axis=1)


def copy_kernel(kernel: Float[Array, "D E"], heads: int, value_width: int) -> Float[Array, "F D"]:
    """W_o that turns what the heads read back into item vectors: W_vᵀ / 2 of `lookup_kernel`."""
    return _COPIED * kernel[:, -heads * value_width :].T


def lookup_taps(
    kernel: int, heads: int, key_width: int, value_width: int, *, size: float = 1.0
) -> Float[Array, "W E"]:
    """Weights of the short convolution of a lookup, one tap a channel.

    Args:
      kernel: W, taps. One tap looks up what stood with an item, not what followed it.
      heads: H; head h is shifted by h events, as far as the taps reach, then from 0 again.
      key_width: K, a head's.
      value_width: V, a head's.
      size: Of the taps.

    Returns:
      float32 [W, H (2 K + V)]; the last row multiplies the current event.
    """
    shifts = jnp.arange(heads) % max(kernel - 1, 1)
    keys = jnp.minimum(shifts + 1, kernel - 1)
    back = jnp.concatenate(
        [
            jnp.repeat(shifts, key_width),
            jnp.repeat(keys, key_width),
            jnp.zeros(heads * value_width, jnp.int32),
        ]
    )
    return size * jax.nn.one_hot(kernel - 1 - back, kernel, axis=0)


def lookup_decay(heads: int) -> tuple[Float[Array, "H"], Float[Array, "H"]]:
    """Content decay log α = -e^a softplus(b): the parameters a = 0, and b by the half-lives.

    Returns:
      The logarithm of the rate, and what softplus turns into the step; float32 [H].
    """
    half_lives = jnp.resize(jnp.array(_HALF_LIVES), (heads,))
    steps = math.log(2) / half_lives
    return jnp.zeros(heads), jnp.log(jnp.expm1(steps))
