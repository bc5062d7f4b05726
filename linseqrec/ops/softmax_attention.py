"""Softmax attention: full, causal and in a sliding window, segment-aware.

Axes: B batch, T time, H heads, K key width, V value width, W window, N blocks.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from linseqrec.ops.segments import segment_runs

Implementation = Literal["dense", "banded"]


def softmax_attention(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B T H K"],
    value: Float[Array, "B T H V"],
    *,
    causal: bool = True,
    window: int | None = None,
    segment_ids: Int[Array, "B T"] | None = None,
    implementation: Implementation | None = None,
    scale: float | None = None,
) -> Float[Array, "B T H V"]:
    """Averages values with weights softmax(scale * <q_t, k_s>) over the slots s that t may see.

    Those are the slots of t's own segment, up to t where causal, and from t - window + 1 on where
    there is a window. Source: arXiv 1706.03762.

    Args:
      query: [B, T, H, K], any float dtype.
      key: [B, T, H, K].
      value: [B, T, H, V].
      causal: Whether slots after t are hidden.
      window: How many slots t sees, itself included; causal only. None: all.
      segment_ids: [B, T], 0 = padding. None: every slot of a row is one segment.
      implementation: None picks: "banded" where the window is shorter than T, else "dense".
        "dense" holds all [T, T] scores; "banded" holds [T, 2 * window].
      scale: None: 1 / sqrt(K).

    Returns:
      [B, T, H, V] in value's dtype; exactly 0 at padding, whatever stands there.

    Raises:
      ValueError: shapes that do not match, a window with causal=False, or "banded" without one.
    """
    _check_shapes(query, key, value, segment_ids)
    time = query.shape[1]
    if window is not None and (not causal or window < 1):
        raise ValueError(f"window={window}, causal={causal}: a window is causal and at least 1")
    if implementation is None:
        implementation = "banded" if window is not None and window < time else "dense"
    if implementation not in ("dense", "banded"):
        raise ValueError(f"implementation {implementation!r}: choose None, 'dense' or 'banded'")
    if implementation == "banded" and window is None:
        raise ValueError("implementation 'banded' needs a window")

    runs = None
    if segment_ids is not None:
        real = segment_ids > 0
        query, key, value = (jnp.where(real[..., None, None], x, 0) for x in (query, key, value))
        # Padding is a segment of its own here: it may see itself, so that no softmax is empty.
        runs = jnp.where(real, segment_runs(segment_ids), 0)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if implementation == "banded" and window is not None:
        output = _banded(query, key, value, runs, min(window, time), scale)
    else:
        slots = jnp.arange(time)
        mask = _visible(slots, slots, runs, runs, causal, window)
        output = _attend(query, key, value, mask, scale)
    if segment_ids is not None:
        output = jnp.where(real[..., None, None], output, 0)
    return output


def _check_shapes(query: Array, key: Array, value: Array, segment_ids: Array | None) -> None:
    if query.ndim != 4 or key.shape != query.shape or value.shape[:3] != query.shape[:3]:
        raise ValueError(
            "query and key must be [B, T, H, K], value [B, T, H, V]; got "
            f"{query.shape}, {key.shape}, {value.shape}"
        )
    if segment_ids is not None and segment_ids.shape != query.shape[:2]:
        raise ValueError(f"segment_ids must be {query.shape[:2]}, got {segment_ids.shape}")


def _visible(
    query_slots: Int[Array, "... Tq"],
    key_slots: Int[Array, "... Tk"],
    query_runs: Int[Array, "... Tq"] | None,
    key_runs: Int[Array, "... Tk"] | None,
    causal: bool,
    window: int | None,
) -> Bool[Array, "... 1 Tq Tk"] | None:
    """Which key each query sees; None where all see all."""
    masks = []
    distance = query_slots[..., :, None] - key_slots[..., None, :]
    if causal:
        masks.append(distance >= 0)
    if window is not None:
        masks.append(distance < window)
    if query_runs is not None and key_runs is not None:
        masks.append(query_runs[..., :, None] == key_runs[..., None, :])
    if not masks:
        return None
    visible = masks[0]
    for mask in masks[1:]:
        visible = visible & mask
    return visible[..., None, :, :]


def _attend(
    query: Float[Array, "B Tq H K"],
    key: Float[Array, "B Tk H K"],
    value: Float[Array, "B Tk H V"],
    mask: Bool[Array, "... 1 Tq Tk"] | None,
    scale: float,
) -> Float[Array, "B Tq H V"]:
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum("bqhk,bnhk->bhqn", query, key, preferred_element_type=dtype) * scale
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(dtype).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    output = jnp.einsum("bhqn,bnhv->bqhv", weights, value, preferred_element_type=dtype)
    return output.astype(value.dtype)


def _banded(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B T H K"],
    value: Float[Array, "B T H V"],
    runs: Int[Array, "B T"] | None,
    window: int,
    scale: float,
) -> Float[Array, "B T H V"]:
    """Cuts the row into blocks of one window: a block sees itself and the block before it."""
    batch, time = query.shape[:2]
    count = -(-time // window)
    filled = count * window

    def blocks(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, filled - time), *((0, 0),) * (x.ndim - 2)))
        return x.reshape(batch, count, window, *x.shape[2:])

    def with_previous(x: Array) -> Array:
        previous = jnp.pad(x[:, :-1], ((0, 0), (1, 0), *((0, 0),) * (x.ndim - 2)))
        return jnp.concatenate([previous, x], axis=2)

    def flat(x: Array) -> Array:
        return x.reshape(batch * count, *x.shape[2:])

    if runs is None:
        runs = jnp.ones_like(query, shape=(batch, time), dtype=jnp.int32)
    runs = blocks(runs)
    # Runs start at 1 (padding: 0), so that -1 marks the block that the first one lacks.
    key_runs = with_previous(runs + 1) - 1
    slots = jnp.arange(window)
    mask = _visible(slots, jnp.arange(-window, window), flat(runs), flat(key_runs), True, window)
    output = _attend(
        flat(blocks(query)), flat(with_previous(blocks(key))), flat(with_previous(blocks(value))),
        mask, scale,
    )  # fmt: skip
    return output.reshape(batch, filled, *output.shape[2:])[:, :time]
