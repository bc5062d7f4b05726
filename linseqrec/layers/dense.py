"""The dense layer and the norm that all models share."""

import jax.numpy as jnp
from flax import nnx


def dense(inputs: int, outputs: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear layer: weights from N(0, 0.02²), biases 0, float32 parameters, `dtype` compute."""
    return nnx.Linear(
        inputs, outputs, dtype=dtype, kernel_init=nnx.initializers.normal(0.02), rngs=rngs
    )


def layer_norm(width: int, *, epsilon: float, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """A layer norm over the width; its statistics are float32 whatever the compute dtype."""
    return nnx.LayerNorm(width, epsilon=epsilon, dtype=dtype, use_fast_variance=False, rngs=rngs)
