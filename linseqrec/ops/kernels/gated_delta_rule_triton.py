"""The gated delta rule on an NVIDIA GPU: launches `gated_delta_rule_kernels` from JAX.

Importing this module needs neither Triton nor a GPU; `triton_choice.unfit` says what a call lacks.
"""

import functools
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
    over_rows,
    padded,
    precision_of,
)
from linseqrec.ops.segments import keep, segment_runs
from linseqrec.sharding import vary_alike


def gated_delta_rule(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H V"],
    log_decay: Float[Array, "B T H"],
    beta: Float[Array, "B T H"],
    segment_ids: Int[Array, "B T"] | None,
    initial_state: Float[Array, "B H K V"] | None,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"]]:
    """`gated_delta_rule.gated_delta_rule`, for inputs that are checked and fit; lowers for CUDA.

    Products of float32 inputs take three TF32 passes and are exact to float32. Those of bfloat16
    inputs sum in float32; what they multiply is rounded to bfloat16.
    """
    dtype, output_dtype = jnp.result_type(q, k, v), v.dtype
    if segment_ids is None:
        runs = jnp.ones((q.shape[0], 1), jnp.int32)
    else:
        # XLA clears padding where it computes these arrays, at no cost. The kernels would do it by
        # masks that depend on loads, which stops them from loading ahead.
        real = segment_ids > 0
        q, k, v, log_decay, beta = (keep(real, x) for x in (q, k, v, log_decay, beta))
        runs = segment_runs(segment_ids)
    key, value = q.shape[-1], v.shape[-1]
    batch, _, heads, _ = q.shape
    if initial_state is None:
        initial_state = jnp.zeros((batch, heads, key, value), jnp.float32)
    state = padded(initial_state.astype(jnp.float32), axes=2)
    q, k, v = (padded(x.astype(dtype)) for x in (q, k, v))
    arguments: tuple[Array, ...] = (q, k, v, log_decay, beta, runs, state)
    # What a kernel returns depends on all that it reads.
    arguments = vary_alike(arguments)
    output, final = _rule(segment_ids is not None, *arguments)
    return output[..., :value].astype(output_dtype), final[..., :key, :value]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rule(segments: bool, *arguments: Array) -> tuple[Array, Array]:
    run = functools.partial(forward, triton_launch.launch, segments=segments, save=False)
    output, final = over_rows(run)(*arguments)
    return output, final


def _rule_forward(segments: bool, *arguments: Array) -> tuple[tuple[Array, Array], tuple]:
    run = functools.partial(forward, triton_launch.launch, segments=segments, save=True)
    output, final, *kept = over_rows(run)(*arguments)
    return (output, final), (*arguments[:-1], *kept)


def _rule_backward(segments: bool, residuals: tuple, cotangents: tuple[Array, Array]) -> tuple:
    run = functools.partial(backward, triton_launch.launch, segments=segments)
    d_q, d_k, d_v, d_log_decay, d_beta, d_state = over_rows(run)(*residuals, *cotangents)
    return d_q, d_k, d_v, d_log_decay, d_beta, None, d_state


_rule.defvjp(_rule_forward, _rule_backward)


# ------------------------------------------------------------------------------------- the launches


class _Plan(NamedTuple):
    """How the kernels cut a call.

    Attributes:
      columns: Columns of the state to a program of a scan.
      scan_stages: Chunks that a scan loads ahead.
      key_columns: Key columns at a time in `chunk_backward`.
      value_columns: Value columns at a time in `chunk_backward`.
    """

    columns: int
    scan_stages: int
    key_columns: int
    value_columns: int


def _plan(lanes: int, key: int, value: int, dtype: str) -> _Plan:
    # All programs of a row and head read the same keys, so as few programs as fill the 132
    # processors of an H100 nearly.
    columns = [w for w in (64, 32, 16) if w <= value]
    filling = [w for w in columns if lanes * (value // w) >= 120]
    wide = dtype == "float32"
    return _Plan(
        columns=filling[0] if filling else columns[-1],
        scan_stages=3 if not wide else 1 if key == 128 else 2,
        # The most that do not spill.
        key_columns=32,
        value_columns=min(value, 32 if wide else 64),
    )


def _kernels() -> Any:
    # Needs Triton, which only who runs a kernel has to have.
    from linseqrec.ops.kernels import gated_delta_rule_kernels

    return gated_delta_rule_kernels


def _constants(q: Any, v: Any) -> dict[str, Any]:
    return {"K": q.shape[-1], "V": v.shape[-1], "C": CHUNK, "PRECISION": precision_of(q)}


def forward(
    launch: Launch,
    q: Any,
    k: Any,
    v: Any,
    log_decay: Any,
    beta: Any,
    runs: Any,
    state: Any,
    *,
    segments: bool,
    save: bool,
) -> tuple:
    """Launches the forward kernels.

    Args:
      launch: Runs one kernel: `triton_launch.launch`, or one for an interpreter or for compiling
        alone.
      q: [B, T, H, K], bfloat16 or float32 as k and v are; K and V are 32, 64 or 128.
      k: [B, T, H, K].
      v: [B, T, H, V].
      log_decay: [B, T, H], any float dtype.
      beta: [B, T, H], any float dtype.
      runs: [B, T] int32, `segment_runs`; [B, 1] without segments.
      state: [B, H, K, V] float32, the initial state.
      segments: Whether there are segments or padding; q, k, v, log_decay and beta are 0 at padding.
      save: Whether to return what `backward` reads.

    Returns:
      The output [B, T, H, V] and the final state [B, H, K, V]; with `save` also W, P, X, e^G,
      e^(G_C - G), S and U of the chunks (see `gated_delta_rule_kernels`).
    """
    kernels = _kernels()
    (batch, time, heads, key), value, narrow = q.shape, v.shape[-1], dtype_name(q)
    chunks = -(-time // CHUNK)
    rows, lanes = (batch, heads, chunks), batch * heads
    plan = _plan(lanes, key, value, narrow)
    constants = _constants(q, v)
    unsaved = Shape((1,), narrow)
    recall, update, scores, inverse, reads, writes = launch(
        kernels.chunk_forward,
        (q, k, v, log_decay, beta, runs),
        (time, heads, chunks),
        (
            Shape((*rows, CHUNK, key), narrow),
            Shape((*rows, CHUNK, value), narrow),
            Shape((*rows, CHUNK, CHUNK), narrow),
            Shape((*rows, CHUNK, CHUNK), "float32") if save else unsaved,
            Shape((*rows, CHUNK), "float32"),
            Shape((*rows, CHUNK), "float32"),
        ),
        grid=(lanes * chunks,),
        warps=4,
        stages=1,
        SEGMENTS=segments,
        SAVE=save,
        **constants,
    )
    output, final, states, updates = launch(
        kernels.scan_forward,
        (q, k, state, recall, update, scores, reads, writes),
        (time, heads, chunks),
        (
            Shape((batch, time, heads, value), narrow),
            Shape((batch, heads, key, value), "float32"),
            Shape((*rows, key, value), narrow) if save else unsaved,
            Shape((*rows, CHUNK, value), narrow) if save else unsaved,
        ),
        grid=(lanes * (value // plan.columns),),
        warps=4,
        stages=plan.scan_stages,
        SAVE=save,
        W=plan.columns,
        **constants,
    )
    if not save:
        return output, final
    return output, final, recall, scores, inverse, reads, writes, states, updates


def backward(
    launch: Launch,
    q: Any,
    k: Any,
    v: Any,
    log_decay: Any,
    beta: Any,
    runs: Any,
    recall: Any,
    scores: Any,
    inverse: Any,
    reads: Any,
    writes: Any,
    states: Any,
    updates: Any,
    d_output: Any,
    d_final: Any,
    *,
    segments: bool,
) -> tuple:
    """Launches the backward kernels: the gradients of q, k, v, log_decay, beta and the state.

    The arguments are those of `forward`, what it returned with `save`, and the gradients of the
    output [B, T, H, V] and of the final state [B, H, K, V].
    """
    kernels = _kernels()
    (batch, time, heads, key), value, narrow = q.shape, v.shape[-1], dtype_name(q)
    chunks = -(-time // CHUNK)
    rows, lanes = (batch, heads, chunks), batch * heads
    plan = _plan(lanes, key, value, narrow)
    constants = _constants(q, v)
    d_states, d_updates, d_state = launch(
        kernels.scan_backward,
        (q, k, recall, scores, reads, writes, d_output, d_final),
        (time, heads, chunks),
        (
            Shape((*rows, key, value), narrow),
            Shape((*rows, CHUNK, value), narrow),
            Shape((batch, heads, key, value), "float32"),
        ),
        grid=(lanes * (value // plan.columns),),
        warps=4,
        stages=plan.scan_stages,
        W=plan.columns,
        **constants,
    )
    gradients = launch(
        kernels.chunk_backward,
        (
            *(q, k, v, log_decay, beta, runs, inverse),
            *(states, updates, d_states, d_updates, d_output),
        ),
        (time, heads, chunks),
        (
            Shape(tuple(q.shape), narrow),
            Shape(tuple(k.shape), narrow),
            Shape(tuple(v.shape), narrow),
            Shape(tuple(log_decay.shape), dtype_name(log_decay)),
            Shape(tuple(beta.shape), dtype_name(beta)),
        ),
        grid=(lanes * chunks,),
        warps=4,
        stages=1,
        SEGMENTS=segments,
        W_KEY=plan.key_columns,
        W_VALUE=plan.value_columns,
        **constants,
    )
    return (*gradients, d_state)
