"""Softmax attention: full, causal and in a sliding window, segment-aware.

Axes: B batch, T time, S slots before the queries, H heads, K key width, V value width, C block,
N blocks.
"""

from collections.abc import Iterable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from linseqrec.ops.segments import segment_runs

Implementation = Literal["blockwise", "banded", "dense"]


def softmax_attention(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B S+T H K"],
    value: Float[Array, "B S+T H V"],
    *,
    causal: bool = True,
    window: int | None = None,
    segment_ids: Int[Array, "B S+T"] | None = None,
    implementation: Implementation | None = None,
    scale: float | None = None,
    block_size: int = 64,
) -> Float[Array, "B T H V"]:
    """Averages values with weights softmax(scale * <q_t, k_s>) over the slots s that t may see.

    Those are the slots of t's own segment, up to t where causal, and from t - window + 1 on where
    there is a window. Source: arXiv 1706.03762.

    Where there are more keys than queries, the queries stand at the last T slots: the S before them
    are a cache of the past.

    Args:
      query: [B, T, H, K], any float dtype.
      key: [B, S + T, H, K], S >= 0.
      value: [B, S + T, H, V].
      causal: Whether slots after t are hidden.
      window: How many slots t sees, itself included; causal only. None: all.
      segment_ids: [B, S + T], 0 = padding. None: every slot of a row is one segment.
      implementation: None picks: "banded" where a window is shorter than S + T, else "blockwise".
        "blockwise" takes a block of queries at a time, "banded" (window only) shows each block no
        more keys than its window reaches; both recompute the scores for the gradient, so that
        memory grows linearly with T. "dense" is `jax.nn.dot_product_attention` with a mask: all
        [T, T] scores at once.
      scale: None: 1 / sqrt(K).
      block_size: The most queries in a block; "banded" takes at least a window of them.

    Returns:
      [B, T, H, V] in value's dtype; exactly 0 at padding, whatever stands there.

    Raises:
      ValueError: shapes that do not match, a window that is not causal or not positive, an unknown
        implementation, or "banded" without a window.
    """
    _check_shapes(query, key, value, segment_ids)
    time, before = key.shape[1], key.shape[1] - query.shape[1]
    if window is not None and (not causal or window < 1):
        raise ValueError(f"a window is causal and at least 1, got {window} with causal={causal}")
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
    if implementation is None:
        implementation = "banded" if window is not None and window < time else "blockwise"
    scale = query.shape[-1] ** -0.5 if scale is None else scale

    # Padding makes up a run of its own, 0: it may see itself, so that no softmax is empty.
    runs = jnp.ones_like(key, shape=key.shape[:2], dtype=jnp.int32)
    if segment_ids is not None:
        real = (segment_ids > 0)[..., None, None]
        runs = jnp.where(segment_ids > 0, segment_runs(segment_ids), 0)
        query = jnp.where(real[:, before:], query, 0)
        key, value = (jnp.where(real, x, 0) for x in (key, value))
    if implementation != "blockwise":
        query = jnp.pad(query, ((0, 0), (before, 0), (0, 0), (0, 0)))
    if implementation == "blockwise":
        output = _blockwise(query, key, value, runs, causal, window, scale, block_size)
    elif implementation == "banded":
        if window is None:
            raise ValueError("implementation 'banded' needs a window")
        output = _banded(query, key, value, runs, min(window, time), scale, block_size)
    elif implementation == "dense":
        output = _dense(query, key, value, runs, causal, window, scale)
    else:
        raise ValueError(
            f"implementation {implementation!r}: choose None, 'blockwise', 'banded' or 'dense'"
        )
    output = output[:, output.shape[1] - (time - before) :]
    return output if segment_ids is None else jnp.where(real[:, before:], output, 0)


def _check_shapes(query: Array, key: Array, value: Array, segment_ids: Array | None) -> None:
    if (
        query.ndim != 4
        or key.ndim != 4
        or (key.shape[0], *key.shape[2:]) != (query.shape[0], *query.shape[2:])
        or key.shape[1] < query.shape[1]
        or value.shape[:3] != key.shape[:3]
    ):
        raise ValueError(
            "query and key must be [B, T, H, K] and [B, S + T, H, K], value [B, S + T, H, V]; got "
            f"{query.shape}, {key.shape}, {value.shape}"
        )
    if segment_ids is not None and segment_ids.shape != key.shape[:2]:
        raise ValueError(
            f"segment_ids must be [B, S + T] = {key.shape[:2]}, got {segment_ids.shape}"
        )


def _visible(
    query_slots: Int[Array, "Tq"],
    key_slots: Int[Array, "Tk"],
    query_runs: Int[Array, "B Tq"],
    key_runs: Int[Array, "B Tk"],
    causal: bool,
    window: int | None,
) -> Bool[Array, "B 1 Tq Tk"]:
    """Which key each query sees."""
    visible = query_runs[:, :, None] == key_runs[:, None, :]
    distance = query_slots[:, None] - key_slots[None, :]
    if causal:
        visible = visible & (distance >= 0)
    if window is not None:
        visible = visible & (distance < window)
    return visible[:, None]


def _attend(
    query: Float[Array, "B H Tq K"],
    key: Float[Array, "B H Tk K"],
    value: Float[Array, "B H Tk V"],
    visible: Bool[Array, "B 1 Tq Tk"],
    scale: float,
) -> Float[Array, "B H Tq V"]:
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum("bhqk,bhnk->bhqn", query, key, preferred_element_type=dtype) * scale
    weights = jax.nn.softmax(jnp.where(visible, scores, jnp.finfo(dtype).min), axis=-1)
    weights = weights.astype(value.dtype)
    output = jnp.einsum("bhqn,bhnv->bhqv", weights, value, preferred_element_type=dtype)
    return output.astype(value.dtype)


def _to_blocks(x: Array, size: int, axis: int, fill: int = 0) -> Float[Array, "N ..."]:
    """Cuts an axis into N blocks, filling up the last one."""
    count = -(-x.shape[axis] // size)
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, count * size - x.shape[axis])
    x = jnp.pad(x, padding, constant_values=fill)
    return jnp.moveaxis(x.reshape(*x.shape[:axis], count, size, *x.shape[axis + 1 :]), axis, 0)


def _from_blocks(blocks: Iterable[Float[Array, "N B H C V"]], time: int) -> Array:
    """Joins blocks into [B, T, H, V]."""
    x = jnp.concatenate(list(blocks))
    x = jnp.transpose(x, (1, 0, 3, 2, 4))
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :time]


def _blockwise(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B S+T H K"],
    value: Float[Array, "B S+T H V"],
    runs: Int[Array, "B S+T"],
    causal: bool,
    window: int | None,
    scale: float,
    block_size: int,
) -> Float[Array, "B T H V"]:
    time, before = query.shape[1], key.shape[1] - query.shape[1]
    size = -(-time // -(-time // block_size))
    query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    # Fillers of the last block are runs of their own, -1, and see nothing; they are cut off again.
    queries, query_runs = _to_blocks(query, size, 2), _to_blocks(runs[:, before:], size, 1, -1)
    slots = _to_blocks(before + jnp.arange(time), size, 0)
    count = len(queries)

    # A causal block needs no keys beyond its end, but a loop's body has one shape: so up to four
    # loops over parts of the row, each with the keys up to its part's end.
    parts = max(1, min(4, count // 2)) if causal else 1
    ends = [count * (part + 1) // parts for part in range(parts)]
    outputs = []
    for start, end in zip([0, *ends], ends, strict=False):
        seen = before + (min(end * size, time) if causal else time)
        keys, values, key_runs = key[:, :, :seen], value[:, :, :seen], runs[:, :seen]

        def one(
            block: tuple[Array, Array, Array],
            keys: Array = keys,
            values: Array = values,
            key_runs: Array = key_runs,
        ) -> Array:
            query, query_runs, slots = block
            key_slots = jnp.arange(keys.shape[2])
            visible = _visible(slots, key_slots, query_runs, key_runs, causal, window)
            return _attend(query, keys, values, visible, scale)

        part = queries[start:end], query_runs[start:end], slots[start:end]
        outputs.append(jax.lax.map(jax.checkpoint(one, prevent_cse=False), part))
    return _from_blocks(outputs, time)


def _banded(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B T H K"],
    value: Float[Array, "B T H V"],
    runs: Int[Array, "B T"],
    window: int,
    scale: float,
    block_size: int,
) -> Float[Array, "B T H V"]:
    """A block of at least one window sees itself and the last window - 1 slots before it."""
    time = query.shape[1]
    size = min(max(window, block_size), time)

    def with_halo(blocks: Array, axis: int, fill: int = 0) -> Array:
        ends = jax.lax.slice_in_dim(blocks, size - (window - 1), size, axis=axis)
        before = jnp.concatenate([jnp.full_like(ends[:1], fill), ends[:-1]])
        return jnp.concatenate([before, blocks], axis=axis)

    query, key, value = (_to_blocks(jnp.swapaxes(x, 1, 2), size, 2) for x in (query, key, value))
    query_runs = _to_blocks(runs, size, 1, -1)

    def one(block: tuple[Array, ...]) -> Array:
        query, key, value, query_runs, key_runs = block
        slots, key_slots = jnp.arange(size), jnp.arange(1 - window, size)
        visible = _visible(slots, key_slots, query_runs, key_runs, True, window)
        return _attend(query, key, value, visible, scale)

    blocks = (
        query,
        with_halo(key, 3),
        with_halo(value, 3),
        query_runs,
        with_halo(query_runs, 2, -1),
    )
    return _from_blocks([jax.lax.map(jax.checkpoint(one, prevent_cse=False), blocks)], time)


def _dense(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B T H K"],
    value: Float[Array, "B T H V"],
    runs: Int[Array, "B T"],
    causal: bool,
    window: int | None,
    scale: float,
) -> Float[Array, "B T H V"]:
    slots = jnp.arange(query.shape[1])
    visible = _visible(slots, slots, runs, runs, causal, window)
    # JAX wants one width: features of zeros change no score, and values of zeros are cut off.
    width = value.shape[-1]
    common = max(query.shape[-1], width)
    query, key, value = (
        jnp.pad(x, ((0, 0),) * 3 + ((0, common - x.shape[-1]),)) for x in (query, key, value)
    )
    output = jax.nn.dot_product_attention(
        query, key, value, mask=visible, scale=scale, implementation="xla"
    )
    return output[..., :width]
