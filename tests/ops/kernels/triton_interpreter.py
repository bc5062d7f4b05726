"""Runs Triton kernels on a CPU, by Triton's interpreter, as if a GPU had: slowly, and exactly.

The interpreter reads its arguments from PyTorch's tensors. `TRITON_INTERPRET=1` has to be set
before Triton is imported (`tests/conftest.py`).
"""

import functools
import importlib.util
import os

import jax
import jax.numpy as jnp
import numpy as np

MISSING = [name for name in ("triton", "torch") if importlib.util.find_spec(name) is None]


def why_not():
    """Why kernels cannot be interpreted here; None if they can."""
    if MISSING:
        return f"{' and '.join(MISSING)} not installed (extra triton-interpreter)"
    if os.environ.get("TRITON_INTERPRET") != "1":
        return "TRITON_INTERPRET=1 is not set, as on a GPU"
    return None


def launch(kernel, arrays, sizes, outputs, *, grid, warps, stages, **constants):
    """What `triton_launch.launch` does, as a callback out of a jitted program."""
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in outputs]
    run = functools.partial(_interpret, kernel, sizes, outputs, grid, constants)
    return jax.pure_callback(run, shapes, *arrays)


def _interpret(kernel, sizes, outputs, grid, constants, *arrays):
    import torch

    _repair_interpreter()
    tensors = [_to_torch(np.asarray(x)) for x in arrays]
    # Filled with NaN: what a kernel forgets to write shows.
    results = [torch.full(x.shape, float("nan"), dtype=getattr(torch, x.dtype)) for x in outputs]
    with np.errstate(all="ignore"):
        kernel[grid](*tensors, *sizes, *results, **constants)
    return [_from_torch(x) for x in results]


def _to_torch(x):
    import torch

    if x.dtype == jnp.bfloat16:
        return torch.tensor(x.view(np.int16)).view(torch.bfloat16)
    return torch.tensor(x)


def _from_torch(x):
    import torch

    if x.dtype == torch.bfloat16:
        return x.view(torch.int16).numpy().view(jnp.bfloat16)
    return x.numpy()


@functools.cache
def _repair_interpreter():
    """Gives Triton 3.6's interpreter products and roundings as on a GPU.

    It multiplies the bits of bfloat16 numbers as integers, truncates to bfloat16 rather than to
    round, knows nothing of TF32, and fails with NumPy 2.4 where a size bounds a loop.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    cast = builder.cast_impl

    def rounded(x, bits):
        """float32 with `bits` fewer, to the nearest, ties to even."""
        whole = np.ascontiguousarray(x).view(np.uint32).astype(np.uint64)
        whole += (1 << (bits - 1)) - 1 + ((whole >> bits) & 1)
        return ((whole >> bits) << bits).astype(np.uint32).view(np.float32)

    def operand(x, precision):
        if x.dtype.scalar == tl.bfloat16:
            return (x.data.astype(np.uint32) << 16).view(np.float32)
        return rounded(x.data, 13) if str(precision).endswith(".TF32") else x.data

    def create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        # float32 would sum as the processor's BLAS does: another error on each processor.
        wide = (operand(x, input_precision).astype(np.float64) for x in (a, b))
        return handle((np.matmul(*wide) + d.data).astype(d.data.dtype), d.dtype.scalar)

    def cast_impl(self, src, dst_type):
        if src.dtype.scalar == tl.float32 and dst_type.scalar == tl.bfloat16:
            bits = (rounded(src.data, 16).view(np.uint32) >> 16).astype(np.uint16)
            return handle(np.where(np.isnan(src.data), 0x7FC0, bits).astype(np.uint16), tl.bfloat16)
        return cast(self, src, dst_type)

    # Patching the language anew for each call of a device function takes a third of the time.
    patch, patched = interpreter._patch_lang, set()

    def patch_once(function):
        names = frozenset(name for name, x in function.__globals__.items() if x in (tl, tl.core))
        if names in patched:
            return interpreter._LangPatchScope()
        scope = patch(function)
        patched.add(names)
        restore = scope.restore

        def restore_and_forget():
            restore()
            patched.clear()

        scope.restore = restore_and_forget
        return scope

    interpreter._patch_lang = patch_once
    patch_tensor = interpreter._patch_lang_tensor

    def patch_tensor_and_index(tensor, scope):
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patch_tensor_and_index
    for name in ("create_fp_ext", "create_fp_trunc"):
        setattr(builder, name, cast_impl)
    builder.create_dot, builder.cast_impl = create_dot, cast_impl
