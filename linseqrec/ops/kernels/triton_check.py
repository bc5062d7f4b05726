"""Whether Triton kernels compute on this GPU what XLA computes, asked before their first use."""

import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

# The greatest error that is rounding, relative to the greatest number: of bfloat16 products, and of
# float32 ones in three passes of TF32.
_TOLERANCES = {"bfloat16": 5e-2, "float32": 1e-3}

# All that an operation returns, by the name of its implementation.
Operation = Callable[..., Any]


def by_default(agrees: Callable[[], bool]) -> bool:
    """Whether `implementation=None` may take Triton kernels.

    LINSEQREC_TRITON=1 in the environment means yes, and 0 means no. Otherwise the answer is yes on
    a GPU on which the kernels agree with XLA, because only a GPU shows errors of a compiler.

    Args:
      agrees: Asks `agree` for the kernels in question.
    """
    setting = os.environ.get("LINSEQREC_TRITON", "")
    if setting not in ("", "0", "1"):
        raise ValueError(f"LINSEQREC_TRITON is {setting!r} in the environment: it must be 0 or 1")
    if setting:
        return setting == "1"
    if jax.default_backend() != "gpu":
        return False
    # A thread of its own has no part in the program that JAX may be tracing, nor in the mesh and
    # the default device that its caller has set.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(agrees).result()


def agree(
    name: str,
    operation: Operation,
    shapes: Sequence[tuple[int, ...]],
    dtype: str,
    reference: str,
) -> bool:
    """Whether the kernels' results and gradients on this device are those of another form.

    Warns if they are not, or cannot be computed.

    Args:
      name: What the user knows the kernels as.
      operation: `operation(*arrays, implementation=...)`: a tree of arrays.
      shapes: Of the arrays, which are normal numbers.
      dtype: Of the arrays.
      reference: The implementation to agree with; it computes at the highest precision.
    """
    rng = np.random.default_rng(0)

    def loss(implementation: str, arrays: list[Array]) -> tuple[Array, Any]:
        results = operation(*arrays, implementation=implementation)
        leaves = [leaf.astype(jnp.float32) for leaf in jax.tree.leaves(results)]
        # No two numbers weigh the same, so that none can stand in for another.
        weighted = (jnp.vdot(leaf, jnp.cos(jnp.arange(leaf.size))) for leaf in leaves)
        return sum(weighted, jnp.float32(0)), leaves

    try:
        arrays = [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]
        outcomes = []
        with jax.numpy_rank_promotion("allow"), jax.default_matmul_precision("highest"):
            for form in ("triton", reference):
                compute = jax.jit(jax.value_and_grad(partial(loss, form), has_aux=True))
                (_, leaves), gradients = compute(arrays)
                outcomes.append(jax.device_get([*leaves, *gradients]))
    # Whatever goes wrong in a compiler or driver that we do not know, XLA remains.
    except Exception as error:
        _warn(name, f"{type(error).__name__}: {error}")
        return False
    pairs = zip(*outcomes, strict=True)
    errors = [_relative_error(got, expected) for got, expected in pairs]
    # The comparison is false for NaN.
    if max(errors) <= _TOLERANCES[dtype]:
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
        f"the Triton kernels of the {name} do not agree with XLA on {device} ({reason}), so XLA "
        "computes it; set LINSEQREC_TRITON=0 to use XLA without this check",
        stacklevel=2,
    )


# Rows of more than two chunks, with a segment that begins within one, and padding.
BATCH, TIME, HEADS = 2, 150, 2


@cache
def segment_ids() -> Any:
    """Segments of the rows, [B, T]."""
    return np.repeat([[1, 2, 0], [3, 3, 4]], (70, 60, 20), axis=1)
