"""Whether Triton kernels compute on this GPU what XLA computes, asked before their first use."""

import functools
import os
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

# The greatest error that is rounding, relative to the greatest number: of bfloat16 products, and of
# float32 ones in three passes of TF32.
_TOLERANCES = {"bfloat16": 5e-2, "float32": 1e-3}

# An operation of arrays by the name of its implementation.
Operation = Callable[..., Array]


def by_default(agrees: Callable[[], bool]) -> bool:
    """Whether `implementation=None` may take Triton kernels.

    LINSEQREC_TRITON=1 in the environment says yes and 0 no. Otherwise they are taken on a GPU on
    which they agree with XLA: a mistake of a compiler shows on a card alone.

    Args:
      agrees: Asks `agree` for the kernels in question.
    """
    if setting := os.environ.get("LINSEQREC_TRITON"):
        return setting == "1"
    if jax.default_backend() != "gpu":
        return False
    # JAX may be tracing a program that the check is no part of.
    with jax.ensure_compile_time_eval():
        return agrees()


def agree(name: str, operation: Operation, arrays: tuple[Array, ...], reference: str) -> bool:
    """Whether the kernels' output and gradients on this device are those of another implementation.

    Warns if they are not, or cannot be computed.

    Args:
      name: What the user knows the kernels as.
      operation: `operation(*arrays, implementation=...)`, an array.
      arrays: Floating-point arguments, all of one dtype.
      reference: The implementation to agree with.
    """
    weights = np.random.default_rng(0).standard_normal(1_000)

    def outcome(implementation: str) -> tuple[Any, ...]:
        def loss(*arrays: Array) -> tuple[Array, Array]:
            output = operation(*arrays, implementation=implementation).astype(jnp.float32)
            return jnp.vdot(output, jnp.resize(weights, output.shape)), output

        every = tuple(range(len(arrays)))
        (_, output), gradients = jax.jit(jax.value_and_grad(loss, every, has_aux=True))(*arrays)
        return jax.device_get((output, *gradients))

    try:
        pairs = list(zip(outcome("triton"), outcome(reference), strict=True))
    # Whatever goes wrong in a compiler or driver that we do not know, XLA remains.
    except Exception as error:
        _warn(name, f"{type(error).__name__}: {error}")
        return False
    errors = [_relative_error(got, expected) for got, expected in pairs]
    # The comparison is false for NaN.
    if max(errors) <= _TOLERANCES[arrays[0].dtype.name]:
        return True
    _warn(name, f"their errors are {', '.join(f'{error:.1e}' for error in errors)}")
    return False


def _relative_error(got: Any, expected: Any) -> float:
    got, expected = (np.asarray(x, np.float64) for x in (got, expected))
    error = np.abs(got - expected).max() / np.abs(expected).max()
    return float(error) if np.isfinite(error) else float("inf")


def _warn(name: str, reason: str) -> None:
    device = jax.devices()[0].device_kind
    warnings.warn(
        f"the Triton kernels of the {name} do not agree with XLA on {device}, which computes in "
        f"their stead ({reason}); LINSEQREC_TRITON=0 leaves out this check",
        stacklevel=2,
    )


def draw(*shapes: tuple[int, ...], dtype: str) -> tuple[Array, ...]:
    """Normal numbers to compare implementations on, the same at each call."""
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes)


# Rows of more than two chunks, with a segment that begins within one, and padding.
BATCH, TIME, HEADS = 2, 150, 2


@functools.cache
def segment_ids() -> Any:
    """Segments of the rows, [B, T]."""
    return np.repeat([[1, 2, 0], [3, 3, 4]], (70, 60, 20), axis=1)
