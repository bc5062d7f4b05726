"""Rotary position encoding: turns each pair of features by an angle proportional to the position.

Axes: B batch, T time, D width (of the model, or of one head).
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def rotary(
    x: Float[Array, "B T *heads D"], positions: Int[Array, "B T"], *, base: float = 10_000.0
) -> Float[Array, "B T *heads D"]:
    """Rotates the interleaved pairs (2i, 2i+1) of the last axis by `positions * base**(-2i/D)`.

    Inner products of rotated vectors depend on the difference of their positions only. Source:
    RoFormer (arXiv 2104.09864); RecGRELA applies it over the full width before the head split,
    which makes its heads a ladder of frequencies.

    An angle is formed as a fixed-point fraction of a turn: the wrap-around of integer
    multiplication is the exact modulo, so that the angle keeps float32's full accuracy (4e-7
    radians) at every position to 1e6, where `position * theta` in float32 is off by 6e-2.

    Args:
      x: [B, T, ..., D], D even: full width [B, T, D] or per head [B, T, H, K]; any float dtype.
      positions: [B, T] integers, the same for all heads.
      base: The slowest pair turns by almost 1/base radians a step.

    Returns:
      The rotated x, in its shape and dtype; computed in float32.

    Raises:
      ValueError: D is odd, or positions do not match x.
    """
    width = x.shape[-1]
    if width % 2:
        raise ValueError(f"rotary pairs up features: the width must be even, got {width}")
    if positions.shape != x.shape[:2]:
        raise ValueError(f"positions {positions.shape} must be [B, T] = {x.shape[:2]}")
    sine, cosine = _sine_and_cosine(positions, width, base)
    between = tuple(range(2, x.ndim - 1))
    sine, cosine = jnp.expand_dims(sine, between), jnp.expand_dims(cosine, between)
    pairs = x.reshape(*x.shape[:-1], width // 2, 2)
    first, second = pairs[..., 0], pairs[..., 1]
    rotated = jnp.stack([first * cosine - second * sine, first * sine + second * cosine], axis=-1)
    return rotated.reshape(x.shape).astype(x.dtype)


def _sine_and_cosine(
    positions: Int[Array, "B T"], width: int, base: float
) -> tuple[Float[Array, "B T F"], Float[Array, "B T F"]]:
    pair = np.arange(width // 2)
    turns_per_step = base ** (-pair / (width / 2)) / (2 * np.pi) * 2.0**32
    whole = np.floor(turns_per_step)
    rest = (turns_per_step - whole).astype(np.float32)
    wrapped = positions.astype(jnp.uint32)[..., None] * whole.astype(np.uint32)
    # As a signed number the fraction lies in [-1/2, 1/2): the nearest angle to 0, where sine and
    # cosine are most accurate. `rest` is what 32 bits of the fraction leave out.
    turns = wrapped.astype(jnp.int32).astype(jnp.float32)
    turns = turns + positions.astype(jnp.float32)[..., None] * rest
    angles = turns * np.float32(2 * np.pi * 2.0**-32)
    return jnp.sin(angles), jnp.cos(angles)
