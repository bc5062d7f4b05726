"""Pointwise attention: SiLU in the place of a softmax, with biases of distance and of time.

Axes: B batch, T time, H heads, K key width, V value width, N distances, M buckets, C block.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from linseqrec.ops.segments import from_chunks, keep, segment_runs, to_chunks

# A bucket spans a factor of e^0.301 = 1.35 in time: 3.3 a factor of e, 7.6 a factor of 10.
_LOG_STEP = 0.301


class TimeBias(NamedTuple):
    """What the time between a query and a key adds to their score.

    Attributes:
      bias: [M], one number a bucket of `time_bucket`; longer times are of the last bucket.
      asked: int32 [B, T], the time of each query in seconds.
      times: int32 [B, T], the time of each key in seconds.
    """

    bias: Float[Array, "M"]
    asked: Int[Array, "B T"]
    times: Int[Array, "B T"]


def time_bucket(seconds: Int[Array, "..."]) -> Int[Array, "..."]:
    """⌊log(max(|seconds|, 1)) / 0.301⌋ with the natural logarithm: 71 at most for int32."""
    logarithm = jnp.log(jnp.maximum(jnp.abs(seconds), 1).astype(jnp.float32))
    return (logarithm / _LOG_STEP).astype(jnp.int32)


def silu_attention(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B T H K"],
    value: Float[Array, "B T H V"],
    *,
    position_bias: Float[Array, "N"],
    time_bias: TimeBias | None = None,
    divisor: float,
    segment_ids: Int[Array, "B T"] | None = None,
    block_size: int = 64,
) -> Float[Array, "B T H V"]:
    """Sums the values of the events so far, weighed by the SiLU of their scores.

        o_t = Σ_s SiLU(<q_t, k_s> + p[t - s] + w[bucket(asked_t - times_s)]) / divisor · v_s

    over the slots s up to t of t's own segment; all heads share the biases. Source: HSTU (arXiv
    2402.17152). A block of queries at a time reads all keys up to it, and the gradient computes its
    scores anew: memory grows linearly with T, time quadratically.

    Args:
      query: [B, T, H, K], any float dtype.
      key: [B, T, H, K].
      value: [B, T, H, V].
      position_bias: p, [N] with N >= T, by the distance in slots, from 0.
      time_bias: w and the times; None adds nothing.
      divisor: Of every weight. HSTU divides by the length of its rows.
      segment_ids: [B, T], 0 = padding. None: every slot of a row is one segment.
      block_size: The most queries in a block.

    Returns:
      [B, T, H, V] in value's dtype; exactly 0 at padding, whatever stands there. Scores and sums
      are float32 (float64 for float64 inputs).

    Raises:
      ValueError: If shapes do not match, or a row is longer than the biases reach.
    """
    _check_shapes(query, key, value, position_bias, time_bias, segment_ids)
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
    runs = jnp.ones_like(query, shape=query.shape[:2], dtype=jnp.int32)
    if segment_ids is not None:
        # Padding is of no run, 0, and so are the slots that fill up the last block.
        real = segment_ids > 0
        runs = jnp.where(real, segment_runs(segment_ids), 0)
        query, key, value = (keep(real, x) for x in (query, key, value))
    time = query.shape[1]
    queries, query_runs = to_chunks(query, block_size), to_chunks(runs, block_size)
    asked = None if time_bias is None else to_chunks(time_bias.asked, block_size)
    count, _, size = query_runs.shape
    starts = size * jnp.arange(count)

    # A block needs no keys beyond its end, but a loop's body has one shape: so up to four loops
    # over parts of the row, each with the keys up to its part's end.
    parts = max(1, min(4, count // 2))
    ends = [count * (part + 1) // parts for part in range(parts)]
    outputs = []
    for start, end in zip([0, *ends], ends, strict=False):
        seen = min(end * size, time)

        def one(
            block: tuple[Array, Array, Array, Array | None],
            key: Array = key[:, :seen],
            value: Array = value[:, :seen],
            key_runs: Array = runs[:, :seen],
            key_times: Array | None = None if time_bias is None else time_bias.times[:, :seen],
        ) -> Array:
            start, query, query_runs, asked = block
            dtype = jnp.promote_types(query.dtype, jnp.float32)
            distance = start + jnp.arange(size)[:, None] - jnp.arange(key.shape[1])
            bias = jnp.take(position_bias, distance, mode="clip").astype(dtype)[None]
            if time_bias is not None and asked is not None and key_times is not None:
                bucket = time_bucket(asked[:, :, None] - key_times[:, None, :])
                bias = bias + jnp.take(time_bias.bias, bucket, mode="clip").astype(dtype)
            scores = jnp.einsum("bqhk,bnhk->bhqn", query, key, preferred_element_type=dtype)
            same = (query_runs[:, :, None] == key_runs[:, None, :]) & (key_runs > 0)[:, None, :]
            visible = (same & (distance >= 0))[:, None]
            weights = jnp.where(visible, jax.nn.silu(scores + bias[:, None]) / divisor, 0)
            read = jnp.einsum(
                "bhqn,bnhv->bqhv", weights.astype(value.dtype), value, preferred_element_type=dtype
            )
            return read.astype(value.dtype)

        blocks = (starts, queries, query_runs, asked)
        part = jax.tree.map(lambda x, own=slice(start, end): x[own], blocks)
        outputs.append(jax.lax.map(jax.checkpoint(one, prevent_cse=False), part))
    return from_chunks(jnp.concatenate(outputs), time)


def _check_shapes(
    query: Array,
    key: Array,
    value: Array,
    position_bias: Array,
    time_bias: TimeBias | None,
    segment_ids: Array | None,
) -> None:
    if (
        query.ndim != 4
        or key.shape != query.shape
        or value.ndim != 4
        or value.shape[:3] != query.shape[:3]
    ):
        raise ValueError(
            "query and key must be [B, T, H, K] and value [B, T, H, V], got "
            f"{query.shape}, {key.shape}, {value.shape}"
        )
    slots = query.shape[:2]
    if position_bias.ndim != 1 or len(position_bias) < slots[1]:
        raise ValueError(
            f"position_bias must be [N] for at least {slots[1]} distances, got "
            f"{position_bias.shape}"
        )
    given = {"segment_ids": segment_ids}
    if time_bias is not None:
        given |= {"time_bias.asked": time_bias.asked, "time_bias.times": time_bias.times}
    for name, array in given.items():
        if array is not None and array.shape != slots:
            raise ValueError(f"{name} must be [B, T] = {slots}, got {array.shape}")
