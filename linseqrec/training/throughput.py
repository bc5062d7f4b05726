"""Model FLOP utilisation: the arithmetic a step must do, over what the device could do."""

import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from linseqrec.models.base import ModelConfig
from linseqrec.models.weights import parameter_path

# Dense bfloat16 FLOP/s of one device by the vendors' datasheets, by a part of `device_kind`.
_DATASHEET = {
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v6": 918e12,
}


def flops_per_event(params: nnx.State, model: ModelConfig) -> float:
    """Floating-point operations of the dense layers for one event, forward and backward.

    6 per weight: a multiplication and an addition, once forward and twice backward (the convention
    of arXiv 2204.02311, appendix B). Mixing over time is left out: in a linear model it is a small
    share. So are the catalogue's scores: they count per target (`flops_per_target`).

    Args:
      params: The model's parameters.
      model: Its hyperparameters; they say which of its weights an event goes through repeatedly.
    """
    return 6.0 * sum(
        leaf.size * model.uses(parameter_path(path))
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if parameter_path(path).endswith("kernel")
    )


def flops_per_target(table: Float[Array, "N+1 D"]) -> float:
    """Operations of scoring one prediction against the whole catalogue, forward and backward."""
    return 6.0 * table.size


def peak_flops(dtype: str) -> float:
    """FLOP/s that all devices together could do.

    The vendor's figure for bfloat16 where it is known; else, and for float32, what a large matrix
    product reaches now (on a CPU that depends on who else is using it).
    """
    device = jax.devices()[0]
    if dtype == "bfloat16":
        for name, flops in _DATASHEET.items():
            if name in device.device_kind:
                return flops * jax.device_count()
    size = 1024 if device.platform == "cpu" else 8192
    square = jnp.full((size, size), 0.5, dtype)
    multiply = jax.jit(jnp.matmul)
    multiply(square, square).block_until_ready()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        multiply(square, square).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2.0 * size**3 / float(np.min(seconds)) * jax.device_count()
