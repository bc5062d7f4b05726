"""Runs Triton kernels from JAX on an NVIDIA GPU: whether they fit, vmap, shard_map, and lowering.

Importing this module needs neither Triton nor a GPU; `unfit` says what a call would lack.
"""

import functools
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import mlir, xla
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from linseqrec.ops.kernels import triton_check
from linseqrec.sharding import DATA, SEQUENCE, vary_over, varying_axes

CHUNK = 64
# Widths of a head that the kernels are compiled for; others are padded.
_WIDTHS = (32, 64, 128)
_PACKAGES = ("triton", "jax_triton")
# The kernels want 180 KB of shared memory a block (K = 128): Hopper and data-centre Blackwell have
# 227, Ampere 163, and cards for desktops 99.
_CAPABILITIES = ("9", "10")


Function = Callable[..., Any]


class Shape(NamedTuple):
    """An array between kernels."""

    shape: tuple[int, ...]
    dtype: str


# Runs a kernel: launch(kernel, arrays, sizes, outputs, grid=, warps=, stages=, **constants).
Launch = Callable[..., Sequence[Any]]


def unfit(widths: Mapping[str, int], dtype: Any) -> str | None:
    """Why the Triton kernels cannot run here; None if they can.

    Args:
      widths: The widths of a head's arrays, by the names that a user knows ("K", "V").
      dtype: What queries, keys and values promote to.
    """
    if max(widths.values()) > _WIDTHS[-1]:
        given = ", ".join(f"{name} = {width}" for name, width in widths.items())
        return f"{' and '.join(widths)} must be at most {_WIDTHS[-1]}, got {given}"
    if dtype not in (jnp.bfloat16, jnp.float32):
        return f"queries, keys and values must be bfloat16 or float32, got {jnp.dtype(dtype).name}"
    for package in _PACKAGES:
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed: pip install -e '.[cuda]'"
    if jax.default_backend() == "gpu":
        device = jax.devices()[0]
        capability = str(getattr(device, "compute_capability", "none"))
        if capability.split(".")[0] not in _CAPABILITIES:
            return f"{device.device_kind} has compute capability {capability}, not 9.0 or 10.0"
    return None


def choose(
    implementation: str | None,
    x: Array,
    unfit: str | None,
    *,
    kernels: Function,
    by_xla: Function,
    agrees: Callable[[], bool],
) -> Function:
    """The form of an operation that runs: its Triton kernels, or XLA's form.

    Args:
      implementation: "triton" for the kernels. None for them where they can run and agree with XLA.
      x: One of the operation's arrays, [B, ...].
      unfit: Why the kernels cannot run (`unfit`); None if they can.
      kernels: Runs the kernels.
      by_xla: Takes the same arguments.
      agrees: Whether the kernels agree with XLA (`triton_check.by_default`).

    Raises:
      ValueError: "triton" for inputs or on a machine that it does not fit.
    """
    if implementation == "triton":
        if unfit is not None:
            raise ValueError(f"implementation 'triton' cannot run here: {unfit}")
        return kernels
    apart = None if unfit is not None else rows_apart(x)
    if apart is None or not triton_check.by_default(agrees):
        return by_xla
    # JAX decides when it lowers the program. The default backend would be wrong on a machine with a
    # GPU that runs a program on its CPU, and on one without that lowers for CUDA.
    return apart(functools.partial(jax.lax.platform_dependent, cuda=kernels, default=by_xla))


def rows_apart(x: Array) -> Callable[[Function], Function] | None:
    """What makes a function of arrays [B, ...] run on each device for that device's rows alone.

    XLA cannot split a kernel over devices: it would have every device run it on all rows. On one
    device, and inside `jax.shard_map`, a function is left as it is. In the context of a mesh
    (`sharding.while_tracing`) it is put into `jax.shard_map` over the mesh's `data` axis.

    Args:
      x: One of the function's arrays. The others have as many rows or are scalars; the function's
        results all have rows.

    Returns:
      The wrapper. None without a mesh to tell which device has which rows, if the mesh splits rows
      by time, or if it does not divide them evenly.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if jax.device_count() == 1 or mesh.manual_axes:
        return lambda function: function
    axes = mesh.shape
    if DATA not in axes or axes.get(SEQUENCE, 1) > 1 or x.shape[0] % axes[DATA]:
        return None

    def apart(function: Function) -> Function:
        def on_each_device(*arguments: Any) -> Any:
            rows = jax.tree.map(lambda y: PartitionSpec(*[DATA][: jnp.ndim(y)]), arguments)
            split = jax.shard_map(function, in_specs=rows, out_specs=PartitionSpec(DATA))
            return split(*arguments)

        return on_each_device

    return apart


def kernel_width(width: int) -> int:
    """The least width that the kernels are compiled for and that holds `width` columns."""
    return min(w for w in _WIDTHS if w >= width)


def padded(x: Float[Array, "..."], axes: int = 1) -> Float[Array, "..."]:
    """The array with zeros after the columns of its last axes, which then have a kernel's width."""
    missing = [kernel_width(width) - width for width in x.shape[-axes:]]
    return jnp.pad(x, [(0, 0)] * (x.ndim - axes) + [(0, more) for more in missing])


def over_rows(function: Callable[..., tuple]) -> Callable[..., tuple]:
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

    return lambda *arrays: vary_over(varying_axes(*arrays), mapped(*arrays))


def like(x: Any) -> Shape:
    """The shape and dtype of an array."""
    return Shape(tuple(x.shape), dtype_name(x))


def precision_of(x: Any) -> str:
    """How a product of an array's dtype is computed: float32 by three passes of TF32."""
    return "tf32x3" if dtype_name(x) == "float32" else "tf32"


def dtype_name(x: Any) -> str:
    """The name of the dtype of a JAX array or of a PyTorch tensor."""
    return str(x.dtype).removeprefix("torch.")


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
_kernel_call_p = Primitive("triton_kernel")
_kernel_call_p.multiple_results = True
_kernel_call_p.def_impl(functools.partial(xla.apply_primitive, _kernel_call_p))


@_kernel_call_p.def_abstract_eval
def _kernel_call_shapes(*_: Any, outputs: Sequence[Shape], **__: Any) -> list[Any]:
    return [jax.core.ShapedArray(x.shape, jnp.dtype(x.dtype)) for x in outputs]


def _refuse(context: Any, *_: Any, **__: Any) -> Any:
    platforms = ", ".join(context.module_context.platforms)
    raise NotImplementedError(
        f"implementation 'triton' runs on CUDA only, not on {platforms}: choose another, or None"
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
