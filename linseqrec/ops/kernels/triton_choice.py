"""Which form of an operation runs: its Triton kernels, or XLA's form.

By default the kernels run where they fit, on a GPU on which they agree with XLA. Importing this
module needs neither Triton nor a GPU.
"""

import functools
import importlib.util
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array

from linseqrec.sharding import DATA, SEQUENCE

# Widths of a head that the kernels are compiled for; others are padded.
WIDTHS = (32, 64, 128)
_PACKAGES = ("triton", "jax_triton")
# The kernels want 180 KB of shared memory a block (K = 128): Hopper and data-centre Blackwell have
# 227, Ampere 163, and cards for desktops 99.
_CAPABILITIES = ("9", "10")
# The greatest error that is rounding, relative to the greatest number: of bfloat16 products, and of
# float32 ones in three passes of TF32.
_TOLERANCES = {"bfloat16": 5e-2, "float32": 1e-3}

Function = Callable[..., Any]
# All that an operation returns, by the name of its implementation.
Operation = Callable[..., Any]


def unfit(widths: Mapping[str, int], dtype: Any) -> str | None:
    """Why the Triton kernels cannot run here; None if they can.

    Args:
      widths: The widths of a head's arrays, by the names that a user knows ("K", "V").
      dtype: What queries, keys and values promote to.
    """
    if max(widths.values()) > WIDTHS[-1]:
        given = ", ".join(f"{name} = {width}" for name, width in widths.items())
        return f"{' and '.join(widths)} must be at most {WIDTHS[-1]}, got {given}"
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
      agrees: Whether the kernels agree with XLA (`agree`).

    Raises:
      ValueError: "triton" for inputs or on a machine that it does not fit.
    """
    if implementation == "triton":
        if unfit is not None:
            raise ValueError(f"implementation 'triton' cannot run here: {unfit}")
        return kernels
    apart = None if unfit is not None else rows_apart(x)
    if apart is None or not by_default(agrees):
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
                compute = jax.jit(jax.value_and_grad(functools.partial(loss, form), has_aux=True))
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


@functools.cache
def segment_ids() -> Any:
    """Segments of the rows, [B, T]."""
    return np.repeat([[1, 2, 0], [3, 3, 4]], (70, 60, 20), axis=1)
