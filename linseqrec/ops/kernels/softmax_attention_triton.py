"""Causal softmax attention on an NVIDIA GPU: launches `softmax_attention_kernels` from JAX.

Importing this module needs neither Triton nor a GPU; `triton_choice.unfit` says what a call lacks.
cuDNN's attention takes none of our rows: `jax.nn.dot_product_attention` knows no segments but by a
[T, T] mask, and its causal mask counts keys and queries from the same slot.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from linseqrec.ops.kernels import triton_launch
from linseqrec.ops.kernels.triton_launch import (
    Launch,
    Shape,
    dtype_name,
    like,
    over_rows,
    padded,
    precision_of,
)
from linseqrec.ops.segments import segment_runs
from linseqrec.sharding import vary_alike


class Reading(NamedTuple):
    """What all queries have in common, and a program is compiled for.

    Attributes:
      behind: How many slots the last key that a query sees stands before the query.
      scale: What scores are multiplied by.
    """

    behind: int
    scale: float


def softmax_attention(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B S H K"],
    value: Float[Array, "B S H V"],
    segment_ids: Int[Array, "B S"] | None,
    *,
    reach: int | None,
    behind: int,
    scale: float,
) -> Float[Array, "B T H V"]:
    """`softmax_attention.softmax_attention`, causal, for inputs that are checked and fit.

    Lowers for CUDA. Products of float32 inputs take three TF32 passes and are exact to float32.
    Those of bfloat16 inputs sum in float32; what they multiply is rounded to bfloat16.

    Args:
      query: [B, T, H, K], of the last T slots.
      key: [B, S, H, K]; as all inputs, 0 at padding.
      value: [B, S, H, V].
      segment_ids: [B, S], 0 = padding; None where a row is one segment.
      reach: A query at slot t sees no key before slot t - reach + 1; None: all of its segment.
      behind: How many slots the last key that a query sees stands before the query.
      scale: What scores are multiplied by.

    Returns:
      [B, T, H, V] in value's dtype; 0 where a query sees no key.
    """
    columns = value.shape[-1]
    dtype = jnp.result_type(query, key, value)
    lows, highs = _bounds(segment_ids, query.shape[0], query.shape[1], key.shape[1], reach)
    arguments: tuple[Array, ...] = (
        *(padded(x.astype(dtype)) for x in (query, key, value)),
        lows,
        highs,
    )
    # What a kernel returns depends on all that it reads.
    arguments = vary_alike(arguments)
    return _attention(Reading(behind, scale), *arguments)[..., :columns].astype(value.dtype)


def _bounds(
    segment_ids: Array | None, batch: int, time: int, total: int, reach: int | None
) -> tuple[Int[Array, "B T"], Int[Array, "B S"]]:
    """The first slot that each query sees, and the last slot that sees each key.

    Queries at padding see no slot, so theirs is S; keys there are seen by none, so theirs is -1.
    """
    slots = jnp.arange(total, dtype=jnp.int32)
    first, last = jnp.zeros((batch, total), jnp.int32), jnp.full((batch, total), total - 1)
    if segment_ids is not None:
        runs = segment_runs(segment_ids)
        changes = runs[:, 1:] != runs[:, :-1]
        starts = jnp.pad(changes, ((0, 0), (1, 0)), constant_values=True)
        ends = jnp.pad(changes, ((0, 0), (0, 1)), constant_values=True)
        first = jax.lax.cummax(jnp.where(starts, slots, 0), axis=1)
        last = jax.lax.cummin(jnp.where(ends, slots, total), axis=1, reverse=True)
    if reach is not None:
        first = jnp.maximum(first, slots - reach + 1)
        last = jnp.minimum(last, slots + reach - 1)
    if segment_ids is not None:
        first = jnp.where(segment_ids > 0, first, total)
        last = jnp.where(segment_ids > 0, last, -1)
    return first[:, total - time :], last.astype(jnp.int32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(reading: Reading, *arguments: Array) -> Array:
    run = functools.partial(forward, triton_launch.launch, reading=reading, save=False)
    return over_rows(run)(*arguments)[0]


def _attention_forward(reading: Reading, *arguments: Array) -> tuple[Array, tuple]:
    run = functools.partial(forward, triton_launch.launch, reading=reading, save=True)
    output, log_sums = over_rows(run)(*arguments)
    return output, (*arguments, output, log_sums)


def _attention_backward(reading: Reading, residuals: tuple, d_output: Array) -> tuple:
    *arguments, output, log_sums = residuals
    # By XLA, in one kernel: two of ours would each sum again.
    d_log_sums = jnp.sum(d_output.astype(jnp.float32) * output.astype(jnp.float32), axis=-1)
    run = functools.partial(backward, triton_launch.launch, reading=reading)
    gradients = over_rows(run)(*arguments, log_sums, d_output, d_log_sums)
    return (*gradients, None, None)


_attention.defvjp(_attention_forward, _attention_backward)


# ------------------------------------------------------------------------------------- the launches


class _Tile(NamedTuple):
    """How one kernel takes a row.

    Attributes:
      chunk: C, slots in a chunk, of queries and of keys.
      warps: Warps of a program.
      stages: Chunks that a program loads ahead.
    """

    chunk: int
    warps: int
    stages: int


# By dtype and the wider of K and V. In bfloat16 every thread holds all it needs in its 255
# registers, as `benchmarks.ops.compiled_kernels` shows. In float32 a product takes three passes:
# threads of 64 slots would keep up to 1,496 bytes on the stack, and those of 32 at most 128.
_TILES = {
    ("bfloat16", 32): _Tile(chunk=64, warps=4, stages=2),
    ("bfloat16", 64): _Tile(chunk=64, warps=4, stages=2),
    ("bfloat16", 128): _Tile(chunk=64, warps=8, stages=2),
    ("float32", 32): _Tile(chunk=32, warps=4, stages=2),
    ("float32", 64): _Tile(chunk=32, warps=8, stages=2),
    ("float32", 128): _Tile(chunk=32, warps=8, stages=1),
}
# Two sums of 128 columns take registers, too.
_TILES_OF_KERNELS = {
    ("bfloat16", 128, "differentiate_key_value"): _Tile(chunk=32, warps=4, stages=2),
}


def _kernels() -> Any:
    # Needs Triton, which only who runs a kernel has to have.
    from linseqrec.ops.kernels import softmax_attention_kernels

    return softmax_attention_kernels


def forward(
    launch: Launch,
    query: Any,
    key: Any,
    value: Any,
    lows: Any,
    highs: Any,
    *,
    reading: Reading,
    save: bool,
) -> tuple:
    """Launches the forward kernel.

    Args:
      launch: Runs one kernel: `triton_launch.launch`, or one for an interpreter or for compiling
        alone.
      query: [B, T, H, K], bfloat16 or float32 as key and value are; widths are 32, 64 or 128.
      key: [B, S, H, K].
      value: [B, S, H, V].
      lows: [B, T] int32, the first slot that a query sees; S at padding.
      highs: [B, S] int32, the last slot that sees a key; -1 at padding.
      reading: What all queries have in common.
      save: Whether to return what `backward` reads.

    Returns:
      The output [B, T, H, V]; with `save` also the base-2 logarithms of the sums [B, T, H].
    """
    batch, time, heads, _ = query.shape
    output = Shape((batch, time, heads, value.shape[-1]), dtype_name(value))
    log_sums = Shape((batch, time, heads) if save else (1,), "float32")
    inputs = (query, key, value, lows, highs)
    results = _launch(launch, "attend", inputs, reading, (output, log_sums), time, SAVE=save)
    return tuple(results) if save else (results[0],)


def backward(
    launch: Launch,
    query: Any,
    key: Any,
    value: Any,
    lows: Any,
    highs: Any,
    log_sums: Any,
    d_output: Any,
    d_log_sums: Any,
    *,
    reading: Reading,
) -> tuple:
    """Launches the backward kernels.

    The arguments are those of `forward`, the logarithms that it returned with `save`, the gradient
    of the output, and its products with the output, summed over V [B, T, H].

    Returns:
      The gradients of queries, keys and values.
    """
    inputs = (query, key, value, lows, highs, log_sums, d_output, d_log_sums)
    of_query, of_key = (like(query),), (like(key), like(value))
    (d_query,) = _launch(launch, "differentiate_query", inputs, reading, of_query, query.shape[1])
    d_key, d_value = _launch(
        launch, "differentiate_key_value", inputs, reading, of_key, key.shape[1]
    )
    return d_query, d_key, d_value


def _launch(
    launch: Launch,
    kernel: str,
    inputs: tuple,
    reading: Reading,
    outputs: tuple[Shape, ...],
    slots: int,
    **constants: Any,
) -> Any:
    """Launches a kernel with one program for each chunk of `slots` slots, row and head."""
    query, key, value, *_ = inputs
    batch, time, heads, width = query.shape
    size = dtype_name(query), max(width, value.shape[-1])
    tile = _TILES_OF_KERNELS.get((*size, kernel), _TILES[size])
    return launch(
        getattr(_kernels(), kernel),
        inputs,
        (time, key.shape[1], heads, reading.behind),
        outputs,
        grid=(batch * heads * -(-slots // tile.chunk),),
        warps=tile.warps,
        stages=tile.stages,
        K=width,
        V=value.shape[-1],
        C=tile.chunk,
        SCALE=reading.scale,
        PRECISION=precision_of(query),
        **constants,
    )
