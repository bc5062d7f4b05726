"""Causal linear attention on an NVIDIA GPU: launches `linear_attention_kernels` from JAX.

Importing this module needs neither Triton nor a GPU; `triton_choice.unfit` says what a call lacks.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from linseqrec.ops.kernels import triton_launch
from linseqrec.ops.kernels.triton_launch import (
    CHUNK,
    Launch,
    Shape,
    dtype_name,
    like,
    over_rows,
    padded,
    precision_of,
)
from linseqrec.ops.segments import keep, segment_runs
from linseqrec.sharding import vary_alike

# Processors of an H100. The fewest chunks for which a part of a row pays for the launch that sums
# it. The most parts, because a program adds up the sums of the others.
_PROCESSORS, _FEWEST_CHUNKS, _MOST_PARTS = 132, 4, 16


def linear_attention(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B T H K"],
    value: Float[Array, "B T H V"],
    denominator_query: Float[Array, "B T H D"] | None,
    denominator_key: Float[Array, "B T H D"] | None,
    epsilon: float | Float[Array, "B T H"],
    segment_ids: Int[Array, "B T"] | None,
    initial_state: Float[Array, "B H K V"] | None,
    initial_sum: Float[Array, "B H D"] | None,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"], Float[Array, "B H D"]]:
    """`linear_attention.linear_attention`, causal, for inputs that are checked and fit.

    Lowers for CUDA. Products of float32 inputs take three TF32 passes and are exact to float32.
    Those of bfloat16 inputs sum in float32; what they multiply is rounded to bfloat16. Sums of
    denominator features are float32.

    Returns:
      The output in value's dtype, and the two sums of the final state, float32.
    """
    batch, time, heads, width = query.shape
    columns = value.shape[-1]
    if denominator_query is None or denominator_key is None:
        denominator_query, denominator_key = query, key
    summed = denominator_key.shape[-1]
    features = [query, key, value, denominator_query, denominator_key]
    dtype = jnp.result_type(*features)
    epsilon = jnp.broadcast_to(epsilon, (batch, time, heads)).astype(jnp.float32)
    runs = jnp.ones((batch, 1), jnp.int32)
    if segment_ids is not None:
        # XLA clears padding where it computes these arrays, at no cost.
        real = segment_ids > 0
        features = [keep(real, x) for x in features]
        epsilon = jnp.where(real[..., None], epsilon, 1)
        runs = segment_runs(segment_ids)
    if initial_state is None or initial_sum is None:
        initial_state = jnp.zeros((batch, heads, width, columns), jnp.float32)
        initial_sum = jnp.zeros((batch, heads, summed), jnp.float32)
    arguments: tuple[Array, ...] = (
        *(padded(x.astype(dtype)) for x in features),
        epsilon,
        runs,
        padded(initial_state.astype(jnp.float32), axes=2),
        padded(initial_sum.astype(jnp.float32)),
    )
    # What a kernel returns depends on all that it reads.
    arguments = vary_alike(arguments)
    output, state, total = _attention(segment_ids is not None, *arguments)
    output = output[..., :columns].astype(value.dtype)
    return output, state[..., :width, :columns], total[..., :summed]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(segments: bool, *arguments: Array) -> tuple[Array, Array, Array]:
    run = functools.partial(forward, triton_launch.launch, segments=segments, save=False)
    output, state, total = over_rows(run)(*arguments)
    return output, state, total


def _attention_forward(
    segments: bool, *arguments: Array
) -> tuple[tuple[Array, Array, Array], tuple]:
    run = functools.partial(forward, triton_launch.launch, segments=segments, save=True)
    output, state, total, *kept = over_rows(run)(*arguments)
    *features, _, runs, _, _ = arguments
    return (output, state, total), (*features, runs, output, *kept)


def _attention_backward(
    segments: bool, residuals: tuple, cotangents: tuple[Array, Array, Array]
) -> tuple:
    *saved, output, denominators, states, sums = residuals
    d_output, d_state, d_total = cotangents
    # By XLA, in one kernel: three of ours would each divide again.
    d_read = d_output.astype(jnp.float32) / denominators[..., None]
    d_denominators = -jnp.sum(d_read * output.astype(jnp.float32), axis=-1)
    d_read = d_read.astype(output.dtype)
    gradients = d_read, d_denominators, d_state, d_total
    run = functools.partial(backward, triton_launch.launch, segments=segments)
    *d_features, d_state, d_total = over_rows(run)(*saved, states, sums, *gradients)
    return (*d_features, d_denominators, None, d_state, d_total)


_attention.defvjp(_attention_forward, _attention_backward)


# ------------------------------------------------------------------------------------- the launches


class _Tile(NamedTuple):
    """How one kernel takes a chunk.

    Attributes:
      columns: W, columns to a program.
      warps: Warps of a program.
      stages: Chunks that a program loads ahead.
    """

    columns: int
    warps: int
    stages: int


# By dtype and the widest of K, V and D. In bfloat16 every thread holds all it needs in its 255
# registers, as `benchmarks.ops.compiled_kernels` shows. In float32 a product takes three passes,
# and wide kernels keep some operands on the stack.
_TILES = {
    ("bfloat16", 32): _Tile(columns=32, warps=4, stages=2),
    ("bfloat16", 64): _Tile(columns=64, warps=4, stages=2),
    ("bfloat16", 128): _Tile(columns=64, warps=8, stages=2),
    ("float32", 32): _Tile(columns=32, warps=4, stages=2),
    ("float32", 64): _Tile(columns=64, warps=8, stages=1),
    ("float32", 128): _Tile(columns=64, warps=8, stages=1),
}
# Masks of segments take registers, too.
_TILES_WITH_SEGMENTS = {
    ("bfloat16", 64, "differentiate_key"): _Tile(columns=64, warps=8, stages=2),
    ("bfloat16", 128, "attend"): _Tile(columns=64, warps=8, stages=1),
    ("bfloat16", 128, "differentiate_query"): _Tile(columns=32, warps=8, stages=2),
    ("bfloat16", 128, "differentiate_value"): _Tile(columns=64, warps=8, stages=1),
    ("bfloat16", 128, "differentiate_key"): _Tile(columns=64, warps=8, stages=1),
}


class _Plan(NamedTuple):
    """How the kernels cut rows.

    Attributes:
      chunk: C, slots in a chunk.
      parts: P, parts of a row.
      chunks: M, chunks in a part.
    """

    chunk: int
    parts: int
    chunks: int


def _plan(time: int, lanes: int, widest: int, dtype: str, parts: int | None) -> _Plan:
    # Of 64 slots a float32 thread of `attend` would keep 440 bytes on the stack, not 96 (width 64).
    chunk = CHUNK // 2 if dtype == "float32" else CHUNK
    chunks = -(-time // chunk)
    if parts is None:
        tile = _TILES[dtype, widest]
        # Registers of a processor hold eight warps of the most registers a thread.
        at_once = _PROCESSORS * 8 // tile.warps
        filling = at_once * tile.columns // (lanes * widest)
        parts = max(1, min(filling, chunks // _FEWEST_CHUNKS, _MOST_PARTS))
    of_part = -(-chunks // parts)
    return _Plan(chunk, -(-chunks // of_part), of_part)


def _kernels() -> Any:
    # Needs Triton, which only who runs a kernel has to have.
    from linseqrec.ops.kernels import linear_attention_kernels

    return linear_attention_kernels


def forward(
    launch: Launch,
    query: Any,
    key: Any,
    value: Any,
    denominator_query: Any,
    denominator_key: Any,
    epsilon: Any,
    runs: Any,
    initial_state: Any,
    initial_sum: Any,
    *,
    segments: bool,
    save: bool,
) -> tuple:
    """Launches the forward kernels.

    Args:
      launch: Runs one kernel: `triton_launch.launch`, or one for an interpreter or for compiling
        alone.
      query: [B, T, H, K], bfloat16 or float32 as all features are; widths are 32, 64 or 128.
      key: [B, T, H, K].
      value: [B, T, H, V].
      denominator_query: [B, T, H, D].
      denominator_key: [B, T, H, D].
      epsilon: [B, T, H] float32, 1 at padding.
      runs: [B, T] int32, `segment_runs`; [B, 1] without segments.
      initial_state: [B, H, K, V] float32.
      initial_sum: [B, H, D] float32.
      segments: Whether there are segments or padding; all features are 0 at padding.
      save: Whether to return what `backward` reads.

    Returns:
      The output [B, T, H, V], the final state [B, H, K, V] and sum [B, H, D]; with `save` also the
      denominators [B, T, H] and the states and sums before the parts of the rows.
    """
    call = _Call.of(query, value, denominator_key, segments)
    like_parts = (call.like_state(call.plan.parts), call.like_sum(call.plan.parts))
    # Nothing reads these where a row is one part.
    parts: Any = (initial_state, initial_sum)
    if call.plan.parts > 1:
        inputs = (key, value, denominator_key, runs)
        parts = call.launch(launch, "sum_keys", inputs, like_parts, "V")
    unsaved = Shape((1,), "float32")
    output, state, total, denominators, states, sums = call.launch(
        launch,
        "attend",
        (
            *(query, key, value, denominator_query, denominator_key, epsilon, runs),
            *(initial_state, initial_sum, *parts),
        ),
        (
            like(value),
            call.like_state(),
            call.like_sum(),
            call.per_slot if save else unsaved,
            *(like_parts if save else (unsaved, unsaved)),
        ),
        "V",
        SAVE=save,
    )
    if not save:
        return output, state, total
    return output, state, total, denominators, states, sums


def backward(
    launch: Launch,
    query: Any,
    key: Any,
    value: Any,
    denominator_query: Any,
    denominator_key: Any,
    runs: Any,
    states: Any,
    sums: Any,
    d_read: Any,
    d_denominators: Any,
    d_state: Any,
    d_sum: Any,
    *,
    segments: bool,
) -> tuple:
    """Launches the backward kernels.

    The arguments are those of `forward`, the states and sums that it returned with `save`, and the
    gradients of what the output is without its denominator [B, T, H, V], in the dtype of the
    features, of the denominators [B, T, H] float32, of the final state and of its sum.

    Returns:
      The gradients of the five arrays of features, of the initial state and of its sum.
    """
    # As many parts as were saved: `jax.vmap` of the gradient alone has more rows than were forward.
    parts = states.shape[2]
    call = _Call.of(query, value, denominator_key, segments, parts)
    d_query, d_denominator_query = call.launch(
        launch,
        "differentiate_query",
        (key, value, denominator_key, runs, states, sums, d_read, d_denominators),
        (like(query), like(denominator_query)),
        "K",
    )
    part_states, part_sums = d_state, d_sum
    if parts > 1:
        part_states, part_sums = call.launch(
            launch,
            "sum_queries",
            (query, denominator_query, runs, d_read, d_denominators),
            (like(states), like(sums)),
            "V",
        )
    d_value, d_initial_state = call.launch(
        launch,
        "differentiate_value",
        (query, key, runs, part_states, d_read, d_state),
        (like(value), call.like_state()),
        "V",
    )
    d_key, d_denominator_key, d_initial_sum = call.launch(
        launch,
        "differentiate_key",
        (
            *(query, value, denominator_query, runs, part_states, part_sums),
            *(d_read, d_denominators, d_state, d_sum),
        ),
        (like(key), like(denominator_key), call.like_sum()),
        "K",
    )
    of_features = (d_query, d_key, d_value, d_denominator_query, d_denominator_key)
    return (*of_features, d_initial_state, d_initial_sum)


class _Call(NamedTuple):
    """What the launches of a call have in common."""

    batch: int
    time: int
    heads: int
    widths: Mapping[str, int]
    dtype: str
    segments: bool
    precision: str
    plan: _Plan

    @classmethod
    def of(
        cls,
        query: Any,
        value: Any,
        denominator_key: Any,
        segments: bool,
        parts: int | None = None,
    ) -> "_Call":
        batch, time, heads, key = query.shape
        widths = {"K": key, "V": value.shape[-1], "D": denominator_key.shape[-1]}
        dtype = dtype_name(query)
        plan = _plan(time, batch * heads, max(widths.values()), dtype, parts)
        return cls(batch, time, heads, widths, dtype, segments, precision_of(query), plan)

    @property
    def per_slot(self) -> Shape:
        return Shape((self.batch, self.time, self.heads), "float32")

    def like_state(self, *parts: int) -> Shape:
        shape = (self.batch, self.heads, *parts, self.widths["K"], self.widths["V"])
        return Shape(shape, "float32")

    def like_sum(self, *parts: int) -> Shape:
        return Shape((self.batch, self.heads, *parts, self.widths["D"]), "float32")

    def launch(
        self,
        launch: Launch,
        kernel: str,
        arrays: Sequence[Any],
        outputs: Sequence[Shape],
        columns_of: str,
        **constants: Any,
    ) -> Sequence[Any]:
        """Launches a kernel over the columns of the keys ("K") or of the values ("V")."""
        plan, size = self.plan, (self.dtype, max(self.widths.values()))
        tile = _TILES[size]
        if self.segments:
            tile = _TILES_WITH_SEGMENTS.get((*size, kernel), tile)
        columns = min(tile.columns, self.widths[columns_of])
        blocks = self.widths[columns_of] // columns
        return launch(
            getattr(_kernels(), kernel),
            arrays,
            (self.time, self.heads, -(-self.time // plan.chunk), plan.parts, plan.chunks),
            outputs,
            grid=(self.batch * self.heads * plan.parts * blocks,),
            warps=tile.warps,
            stages=tile.stages,
            **self.widths,
            C=plan.chunk,
            W=columns,
            SEGMENTS=self.segments,
            PRECISION=self.precision,
            **constants,
        )
