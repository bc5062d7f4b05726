"""A model's variables as NumPy arrays by name: out of a model, and into one.

A name is the path of attributes from the model down, as in "blocks/0/attention/gate/kernel". Each
model's module says what its names are in the paper. Arrays from PyTorch need turning: a `Linear`
holds its weight as [out, in] where a kernel here is [in, out], and a depthwise `Conv1d` as
[D, 1, W] where a weight here is [W, D] (`weight[:, 0, :].T`; both keep the current event last). A
`LayerNorm`'s weight is called scale here.
"""

import difflib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from linseqrec.sharding import named_leaves, parameter_path


def parameter_arrays(model: nnx.Module) -> dict[str, np.ndarray]:
    """All parameters and buffers of a model by name: copies, in float32."""
    return {name: np.array(leaf) for name, leaf in named_leaves(nnx.state(model)).items()}


def load_parameters(model: nnx.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Sets all parameters and buffers of a model in place; none if the arrays misfit.

    Args:
      model: The model.
      arrays: One array for each name of `parameter_arrays(model)`, of the same shape and any
        floating dtype.

    Raises:
      ValueError: If names are missing or not the model's, or shapes differ; lists all of them.
    """
    params = nnx.state(model)
    shapes = {name: leaf.shape for name, leaf in named_leaves(params).items()}
    faults = [f"missing: {name} {shapes[name]}" for name in shapes if name not in arrays]
    for name, array in arrays.items():
        if name not in shapes:
            close = difflib.get_close_matches(name, shapes, n=1)
            faults.append(f"unknown: {name}" + (f"; did you mean {close[0]}?" if close else ""))
        elif np.shape(array) != shapes[name]:
            faults.append(f"wrong shape: {name} is {np.shape(array)}, want {shapes[name]}")
    if faults:
        listed = "".join(f"\n  {fault}" for fault in faults)
        raise ValueError(f"the arrays do not fit {type(model).__name__}:{listed}")
    nnx.update(
        model,
        jax.tree_util.tree_map_with_path(
            lambda path, leaf: jnp.asarray(arrays[parameter_path(path)], leaf.dtype), params
        ),
    )
