"""The gated delta rule on an NVIDIA GPU: launches `gated_delta_rule_kernels` from JAX.

Importing this module needs neither Triton nor a GPU; `unfit` says what a call would lack.
"""

import functools
import importlib.util
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import mlir, xla
from jaxtyping import Array, Float, Int

from linseqrec.ops.segments import keep, segment_runs

CHUNK = 64
_WIDTHS = (32, 64, 128)
_PACKAGES = ("triton", "jax_triton")
# The kernels want 180 KB of shared memory a block (K = 128): Hopper and data-centre Blackwell have
# 227, Ampere 163, and cards for desktops 99.
_CAPABILITIES = ("9", "10")


class Shape(NamedTuple):
    """An array between kernels."""

    shape: tuple[int, ...]
    dtype: str


# Runs a kernel: launch(kernel, arrays, sizes, outputs, grid=, warps=, stages=, **constants).
Launch = Callable[..., Sequence[Any]]


def unfit(key: int, value: int, dtype: Any) -> str | None:
    """Why the Triton kernels cannot run here; None if they can.

    Args:
      key: K, the width of queries and keys.
      value: V, the width of values.
      dtype: What queries, keys and values promote to.
    """
    if max(key, value) > _WIDTHS[-1]:
        return f"K and V must be at most {_WIDTHS[-1]}, got {key} and {value}"
    if dtype not in (jnp.bfloat16, jnp.float32):
        return f"q, k and v must be bfloat16 or float32, got {jnp.dtype(dtype).name}"
    for package in _PACKAGES:
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed: pip install 'linseqrec[cuda]'"
    if jax.default_backend() == "gpu":
        device = jax.devices()[0]
        capability = str(getattr(device, "compute_capability", "none"))
        if capability.split(".")[0] not in _CAPABILITIES:
            return f"{device.device_kind} has compute capability {capability}, not 9.0 or 10.0"
    return None


def by_default() -> bool:
    """Whether the user has asked for these kernels wherever they fit: LINSEQREC_TRITON=1.

    No GPU has run them yet, and a compiler's mistake shows on a GPU alone. Whoever has seen their
    tests pass on a card (`JAX_PLATFORMS=cuda pytest -m gpu tests/ops`) sets the variable there.
    """
    return os.environ.get("LINSEQREC_TRITON") == "1"


def on_one_device(x: Array) -> bool:
    """Whether one device alone computes with x: it is the only one, or inside `jax.shard_map`.

    Elsewhere XLA, which cannot split a kernel, would have every device run it on all rows.
    """
    return jax.device_count() == 1 or bool(_varying_axes(x))


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
    wide_key, wide_value = (min(w for w in _WIDTHS if w >= width) for width in (key, value))
    q, k = (_widened(x.astype(dtype), wide_key) for x in (q, k))
    v = _widened(v.astype(dtype), wide_value)
    batch, _, heads, _ = q.shape
    if initial_state is None:
        state = jnp.zeros((batch, heads, wide_key, wide_value), jnp.float32)
    else:
        rows = ((0, 0), (0, 0), (0, wide_key - key), (0, wide_value - value))
        state = jnp.pad(initial_state.astype(jnp.float32), rows)
    arguments: tuple[Array, ...] = (q, k, v, log_decay, beta, runs, state)
    # What a kernel returns depends on all that it reads.
    arguments = _vary_over(_varying_axes(*arguments), arguments)
    output, final = _rule(segment_ids is not None, *arguments)
    return output[..., :value].astype(output_dtype), final[..., :key, :value]


def _widened(x: Float[Array, "B T H D"], width: int) -> Float[Array, "B T H W"]:
    return jnp.pad(x, (*((0, 0),) * 3, (0, width - x.shape[-1]))) if x.shape[-1] < width else x


def _varying_axes(*arrays: Array) -> frozenset[str]:
    """The mesh axes over which any of the arrays varies; none outside `jax.shard_map`."""
    return frozenset().union(*(jax.typeof(x).manual_axis_type.varying for x in arrays))


def _vary_over(axes: frozenset[str], arrays: Sequence[Array]) -> tuple[Array, ...]:
    """The arrays, varying over all of the axes; the gradient of one that did not is a sum."""

    def widen(x: Array) -> Array:
        missing = tuple(axes - _varying_axes(x))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return tuple(map(widen, arrays))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rule(segments: bool, *arguments: Array) -> tuple[Array, Array]:
    run = functools.partial(forward, launch, segments=segments, save=False)
    output, final = _over_rows(run)(*arguments)
    return output, final


def _rule_forward(segments: bool, *arguments: Array) -> tuple[tuple[Array, Array], tuple]:
    run = functools.partial(forward, launch, segments=segments, save=True)
    output, final, *kept = _over_rows(run)(*arguments)
    return (output, final), (*arguments[:-1], *kept)


def _rule_backward(segments: bool, residuals: tuple, cotangents: tuple[Array, Array]) -> tuple:
    run = functools.partial(backward, launch, segments=segments)
    d_q, d_k, d_v, d_log_decay, d_beta, d_state = _over_rows(run)(*residuals, *cotangents)
    return d_q, d_k, d_v, d_log_decay, d_beta, None, d_state


_rule.defvjp(_rule_forward, _rule_backward)


def _over_rows(function: Callable[..., tuple]) -> Callable[..., tuple]:
    """The function of arrays [B, ...] as JAX's transformations need it.

    `jax.vmap` is a call with more rows; results vary over the mesh axes that arguments vary over.
    """
    mapped = jax.custom_batching.custom_vmap(function)

    @mapped.def_vmap
    def more_rows(size: int, batched: Sequence[bool], *arrays: Array) -> tuple[tuple, tuple]:
        def fold(x: Array, is_batched: bool) -> Array:
            x = x if is_batched else jnp.broadcast_to(x, (size, *x.shape))
            return x.reshape(-1, *x.shape[2:])

        results = mapped(*map(fold, arrays, batched))
        apart = tuple(x.reshape(size, -1, *x.shape[1:]) for x in results)
        return apart, (True,) * len(apart)

    return lambda *arrays: _vary_over(_varying_axes(*arrays), mapped(*arrays))


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
    from linseqrec.ops import gated_delta_rule_kernels

    return gated_delta_rule_kernels


def _narrow(x: Any) -> str:
    return str(x.dtype).removeprefix("torch.")


def _constants(q: Any, v: Any) -> dict[str, Any]:
    precision = "tf32x3" if _narrow(q) == "float32" else "tf32"
    return {"K": q.shape[-1], "V": v.shape[-1], "C": CHUNK, "PRECISION": precision}


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
      launch: Runs one kernel: `launch` below, or one for an interpreter or for compiling alone.
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
    (batch, time, heads, key), value, narrow = q.shape, v.shape[-1], _narrow(q)
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
    (batch, time, heads, key), value, narrow = q.shape, v.shape[-1], _narrow(q)
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
            Shape(tuple(log_decay.shape), _narrow(log_decay)),
            Shape(tuple(beta.shape), _narrow(beta)),
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


# ---------------------------------------------------------------------------------------- into JAX


def launch(
    kernel: Any,
    arrays: Sequence[Array],
    sizes: Sequence[int],
    outputs: Sequence[Shape],
    *,
    grid: tuple[int],
    warps: int,
    stages: int,
    **constants: Any,
) -> list[Array]:
    """Runs a kernel on a GPU from JAX; its parameters are arrays, sizes, outputs and constants."""
    results = _kernel_call_p.bind(
        *arrays,
        kernel=kernel,
        sizes=tuple(sizes),
        outputs=tuple(outputs),
        grid=grid,
        warps=warps,
        stages=stages,
        constants=tuple(constants.items()),
    )
    return results


# Our own primitive around jax_triton's: it says why other platforms cannot run a kernel, and calls
# kernels by XLA's typed interface.
_kernel_call_p = Primitive("gated_delta_rule_kernel")
_kernel_call_p.multiple_results = True
_kernel_call_p.def_impl(functools.partial(xla.apply_primitive, _kernel_call_p))


@_kernel_call_p.def_abstract_eval
def _kernel_call_shapes(*_: Any, outputs: Sequence[Shape], **__: Any) -> list[Any]:
    return [jax.core.ShapedArray(x.shape, jnp.dtype(x.dtype)) for x in outputs]


def _refuse(context: Any, *_: Any, **__: Any) -> Any:
    platforms = ", ".join(context.module_context.platforms)
    raise NotImplementedError(
        f"implementation 'triton' of gated_delta_rule runs on CUDA only, not on {platforms}: "
        "choose None or 'chunked'"
    )


def _lower(
    context: Any,
    *operands: Any,
    kernel: Any,
    sizes: tuple[int, ...],
    outputs: Sequence[Shape],
    grid: tuple[int],
    warps: int,
    stages: int,
    constants: tuple[tuple[str, Any], ...],
) -> Any:
    import jax_triton

    def call(*arrays: Array) -> list[Array]:
        return jax_triton.triton_call(
            *arrays,
            *sizes,
            kernel=kernel,
            out_shape=[jax.ShapeDtypeStruct(*x) for x in outputs],
            grid=grid,
            num_warps=warps,
            num_stages=stages,
            compute_capability=_compute_capability(),
            **dict(constants),
        )

    results = mlir.lower_fun(call, multiple_results=True)(context, *operands)
    # jax_triton 0.3 emits XLA's untyped call, which is deprecated and stays out of CUDA graphs: its
    # typed one takes the same kernel.
    untyped = results[0].owner
    typed = jax.ffi.ffi_lowering("triton_kernel_call_ffi", api_version=4)
    results = typed(context, *operands, opaque=untyped.attributes["backend_config"].value_bytes)
    untyped.erase()
    return results


def _compute_capability() -> int:
    """That of the GPU; 90 (Hopper) where a program is lowered for CUDA without one."""
    import jax_triton

    try:
        return jax_triton.get_compute_capability(0)
    except RuntimeError:
        return 90


mlir.register_lowering(_kernel_call_p, _refuse)
mlir.register_lowering(_kernel_call_p, _lower, platform="cuda")
