"""The short convolution that stands beside, or before, a recurrence."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from linseqrec.ops.convolution import short_convolution


class ShortConvolution(nnx.Module):
    """SiLU of a causal depthwise convolution.

    Attributes:
      weight: float32 [W, D]; the last row multiplies the current event.
      bias: float32 [D]; None without it.
    """

    def __init__(self, width: int, kernel: int, *, bias: bool = True, rngs: nnx.Rngs):
        # PyTorch's default for a depthwise convolution, U(±1/√kernel): the released models'.
        bound = kernel**-0.5
        draw = nnx.initializers.uniform(2 * bound)
        self.weight = nnx.Param(draw(rngs.params(), (kernel, width), jnp.float32) - bound)
        self.bias = nnx.Param(draw(rngs.params(), (width,), jnp.float32) - bound) if bias else None

    def __call__(
        self,
        x: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"] | None = None,
        state: Float[Array, "B W-1 D"] | None = None,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B W-1 D"]]:
        """Convolves each segment on its own; returns the outputs and the last W - 1 inputs."""
        mixed, state = short_convolution(
            x,
            self.weight[...].astype(x.dtype),
            None if self.bias is None else self.bias[...].astype(x.dtype),
            segment_ids=segment_ids,
            state=state,
        )
        return jax.nn.silu(mixed), state
