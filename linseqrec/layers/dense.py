"""The dense layers and the norms that models share."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float


class Decayed(nnx.Param):
    """A parameter that weight decay draws towards 0. All others keep their scale."""


class Dense(nnx.Linear):
    """A linear layer: float32 parameters, `dtype` compute, biases 0; its weights decay.

    Weights are drawn from N(0, deviation²). By default the deviation is 1 / √inputs: inputs of rms
    1 make outputs of rms 1.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        bias: bool = True,
        deviation: float | None = None,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        deviation = inputs**-0.5 if deviation is None else deviation
        super().__init__(
            inputs,
            outputs,
            use_bias=bias,
            dtype=dtype,
            kernel_init=nnx.initializers.normal(deviation),
            rngs=rngs,
        )
        self.kernel = self.weights(self.kernel[...])

    @staticmethod
    def weights(kernel: Float[Array, "I O"]) -> nnx.Param:
        """The kind of parameter that the weights are."""
        return Decayed(kernel)


class Gate(Dense):
    """A dense layer whose outputs open and shut something: its weights do not decay."""

    @staticmethod
    def weights(kernel: Float[Array, "I O"]) -> nnx.Param:
        """The kind of parameter that the weights are."""
        return nnx.Param(kernel)


class GateLogits(Gate):
    """A gate of one logit a head, in float32 whatever the model computes in.

    A logit of 3 rounded to bfloat16 is off by up to .008, and the logarithm of what a memory keeps
    by as much times its rate, at every event anew.
    """

    def __init__(self, inputs: int, heads: int, *, bias: bool = False, rngs: nnx.Rngs):
        super().__init__(inputs, heads, bias=bias, dtype=jnp.float32, rngs=rngs)


class Identity(nnx.Module):
    """Stands for a norm or a projection that a model does without."""

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Returns x."""
        return x


def layer_norm(width: int, *, epsilon: float, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """A layer norm over the width; its statistics are float32 whatever the compute dtype."""
    return nnx.LayerNorm(width, epsilon=epsilon, dtype=dtype, use_fast_variance=False, rngs=rngs)


def rms_norm(width: int, *, epsilon: float, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.RMSNorm:
    """A root-mean-square norm over the width; its statistics are float32."""
    return nnx.RMSNorm(width, epsilon=epsilon, dtype=dtype, rngs=rngs)
