"""Dropout and stochastic depth as functions of a key: a training step stays a pure function."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray


def dropout(x: Float[Array, "..."], rate: float, key: PRNGKeyArray | None) -> Float[Array, "..."]:
    """Zeroes entries of `x` with probability `rate` and scales the rest by 1 / (1 - rate).

    Args:
      x: Any shape.
      rate: Probability of dropping, in [0, 1).
      key: Randomness; None (evaluation) returns `x`.

    Returns:
      An array like `x`.
    """
    if key is None or rate == 0.0:
        return x
    keep = _keep_mask(key, rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)


def drop_path(
    x: Float[Array, "B T D"],
    rate: float,
    segment_ids: Int[Array, "B T"],
    key: PRNGKeyArray | None,
) -> Float[Array, "B T D"]:
    """Stochastic depth: drops a residual branch for whole segments (arXiv 1603.09382).

    Each segment of a row draws by itself, so that packing does not tie users together.

    Args:
      x: The branch's output.
      rate: Probability of dropping a segment's branch, in [0, 1).
      segment_ids: In 1..T; 0 is padding, which goes with segment 1: the released RecGRELA reads it.
      key: Randomness; None (evaluation) returns `x`.

    Returns:
      An array like `x`; segments that survive are scaled by 1 / (1 - rate).
    """
    if key is None or rate == 0.0:
        return x
    # A row of T slots has at most T segments: segment s reads draw s - 1.
    draws = _keep_mask(key, rate, segment_ids.shape)
    keep = jnp.take_along_axis(draws, jnp.maximum(segment_ids - 1, 0), axis=1)
    return jnp.where(keep[..., None], x / (1.0 - rate), 0).astype(x.dtype)


def split_key(key: PRNGKeyArray | None, parts: int) -> list[PRNGKeyArray | None]:
    """Splits a dropout key; None, evaluation, splits into Nones."""
    return [None] * parts if key is None else list(jax.random.split(key, parts))


def _keep_mask(key: PRNGKeyArray, rate: float, shape: tuple[int, ...]) -> Array:
    # 16 random bits settle the rate to 1.5e-5 at half the cost of 32: random bits are a visible
    # share of a training step on a CPU.
    bits = jax.random.bits(key, shape, jnp.uint16)
    return bits >= round(rate * 2**16)
