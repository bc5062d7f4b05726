"""Runs Triton kernels from JAX on an NVIDIA GPU: padding, vmap, shard_map, and lowering.

Importing this module needs neither Triton nor a GPU; `triton_choice.unfit` says what a call lacks.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import mlir, xla
from jaxtyping import Array, Float

from linseqrec.ops.kernels.triton_choice import WIDTHS
from linseqrec.sharding import vary_over, varying_axes

CHUNK = 64


class Shape(NamedTuple):
    """An array between kernels."""

    shape: tuple[int, ...]
    dtype: str


# Runs a kernel: launch(kernel, arrays, sizes, outputs, grid=, warps=, stages=, **constants).
Launch = Callable[..., Sequence[Any]]


def kernel_width(width: int) -> int:
    """The least width that the kernels are compiled for and that holds `width` columns."""
    return min(w for w in WIDTHS if w >= width)


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
