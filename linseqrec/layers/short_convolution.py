"""The short convolution that stands beside, or before, a recurrence."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from linseqrec.layers.states import Stateless, empty, past_or_none
from linseqrec.ops.convolution import sequence_parallel_short_convolution, short_convolution
from linseqrec.sharding import DATA, SEQUENCE, time_is_split


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

    def initial_state(self, batch_size: int) -> Float[Array, "B P D"]:
        """The inputs before any event."""
        kernel, width = self.weight.shape
        return empty(batch_size, kernel - 1, width)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"] | None,
        state: Float[Array, "B P D"],
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B P D"]]:
        """Convolves each segment on its own; returns the outputs and the last W - 1 inputs.

        `segment_ids=None` takes every slot for an event of one segment.
        """
        weight, bias = jax.tree.map(
            lambda parameter: parameter[...].astype(x.dtype),
            (self.weight, self.bias),
            is_leaf=lambda node: isinstance(node, nnx.Param),
        )
        if time_is_split():
            if segment_ids is None:
                segment_ids = jnp.ones(x.shape[:2], jnp.int32)
            mixed, state = _split(x, weight, bias, segment_ids, past_or_none(state))
        else:
            mixed, state = short_convolution(
                x, weight, bias, segment_ids=segment_ids, state=past_or_none(state)
            )
        return jax.nn.silu(mixed), state


class NoConvolution(Stateless):
    """Stands for a short convolution that a mixer does without: its inputs are its outputs."""

    def __call__(
        self, x: Float[Array, "B T D"], segment_ids: Int[Array, "B T"] | None, state: tuple[()]
    ) -> tuple[Float[Array, "B T D"], tuple[()]]:
        """Returns x."""
        del segment_ids
        return x, state


def _split(
    x: Float[Array, "B T D"],
    weight: Float[Array, "W D"],
    bias: Float[Array, "D"] | None,
    segment_ids: Int[Array, "B T"],
    state: Float[Array, "B P D"] | None,
) -> tuple[Float[Array, "B T D"], Float[Array, "B P D"]]:
    """`short_convolution` for rows whose slots are divided over the mesh's `sequence` axis."""

    def part(
        x: Array, weight: Array, bias: Array | None, segment_ids: Array, state: Array | None
    ) -> tuple[Array, Array]:
        return sequence_parallel_short_convolution(
            x, weight, bias, axis_name=SEQUENCE, segment_ids=segment_ids, state=state
        )

    slots, rows, shared = PartitionSpec(DATA, SEQUENCE), PartitionSpec(DATA), PartitionSpec()
    inputs = slots, shared, shared, slots, rows
    split = jax.shard_map(part, in_specs=inputs, out_specs=(slots, rows))
    return split(x, weight, bias, segment_ids, state)
