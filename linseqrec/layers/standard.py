"""Layers that all models share: dense, norms, dropout, the item table, feed-forward halves."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray


class Decayed(nnx.Param):
    """A parameter that weight decay draws towards 0. All others keep their scale."""


class ItemRows(nnx.Param):
    """A table with one row per item. A training step may update only the rows that it reads."""


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
        precision: jax.lax.Precision | None = None,
        rngs: nnx.Rngs,
    ):
        deviation = inputs**-0.5 if deviation is None else deviation
        super().__init__(
            inputs,
            outputs,
            use_bias=bias,
            dtype=dtype,
            precision=precision,
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
    """A gate of one logit per head, in float32 whatever the model computes in.

    bfloat16 rounds a logit of 3 by up to .008. The logarithm of what a memory keeps is then off by
    .008 times the memory's rate, at every event. Accelerators would round as much in a product of
    float32 numbers.
    """

    def __init__(self, inputs: int, heads: int, *, bias: bool = False, rngs: nnx.Rngs):
        highest = jax.lax.Precision.HIGHEST
        super().__init__(inputs, heads, bias=bias, dtype=jnp.float32, precision=highest, rngs=rngs)


class Identity(nnx.Module):
    """Stands for a norm or a projection that a model does without."""

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Returns x."""
        return x


def layer_norm(
    width: int, *, epsilon: float, affine: bool = True, dtype: DTypeLike, rngs: nnx.Rngs
) -> nnx.LayerNorm:
    """A layer norm over the width; its statistics are float32 whatever the compute dtype.

    Args:
      width: D.
      epsilon: Added to the variance.
      affine: Whether it learns a scale and a bias.
      dtype: Compute dtype.
      rngs: Randomness.
    """
    return nnx.LayerNorm(
        width,
        epsilon=epsilon,
        use_scale=affine,
        use_bias=affine,
        dtype=dtype,
        use_fast_variance=False,
        rngs=rngs,
    )


def rms_norm(
    width: int, *, epsilon: float, affine: bool = True, dtype: DTypeLike, rngs: nnx.Rngs
) -> nnx.RMSNorm:
    """A root-mean-square norm over the width; its statistics are float32.

    Args: `affine` is whether it learns a scale.
    """
    return nnx.RMSNorm(width, epsilon=epsilon, use_scale=affine, dtype=dtype, rngs=rngs)


def unit_length(x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """Scales vectors to length 1 (those much shorter than 1e-3 towards 0), in x's dtype.

    It returns x / √(|x|² + 1e-6), where |x|² is float32 whatever the dtype.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    square = jnp.sum(jnp.square(wide), axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(square + 1e-6)).astype(x.dtype)


class UnitNorm(nnx.Module):
    """Gives vectors the length 1/τ: their products with unit vectors are cosines over τ."""

    def __init__(self, temperature: float):
        """Args: `temperature` is τ."""
        self.temperature = temperature

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Returns x / √(|x|² + 1e-6) / τ."""
        return unit_length(x) / self.temperature


def score_norm(
    width: int, temperature: float | None, *, dtype: DTypeLike, rngs: nnx.Rngs
) -> nnx.LayerNorm | UnitNorm:
    """The last norm of a model: a LayerNorm for dot products, a UnitNorm for cosines.

    Args:
      width: D.
      temperature: Of cosines; None for dot products.
      dtype: Compute dtype.
      rngs: Randomness.
    """
    if temperature is None:
        return layer_norm(width, epsilon=1e-6, dtype=dtype, rngs=rngs)
    return UnitNorm(temperature)


def dropout(x: Float[Array, "..."], rate: float, key: PRNGKeyArray | None) -> Float[Array, "..."]:
    """Zeroes entries of `x` with probability `rate` and scales the rest by 1 / (1 - rate).

    Args:
      x: Any shape.
      rate: Probability of dropping, in [0, 1).
      key: Randomness; None (evaluation) returns `x`.

    Returns:
      An array like `x`.
    """
    if key is None or rate == 0.0:
        return x
    keep = _keep_mask(key, rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)


def drop_path(
    x: Float[Array, "B T D"],
    rate: float,
    segment_ids: Int[Array, "B T"],
    key: PRNGKeyArray | None,
) -> Float[Array, "B T D"]:
    """Stochastic depth: drops a residual branch for whole segments (arXiv 1603.09382).

    Each segment of a row draws by itself, so that packing does not tie users together.

    Args:
      x: The branch's output.
      rate: Probability of dropping a segment's branch, in [0, 1).
      segment_ids: In 1..T; 0 is padding, which goes with segment 1: the released RecGRELA reads it.
      key: Randomness; None (evaluation) returns `x`.

    Returns:
      An array like `x`; segments that survive are scaled by 1 / (1 - rate).
    """
    if key is None or rate == 0.0:
        return x
    # A row of T slots has at most T segments: segment s reads draw s - 1.
    draws = _keep_mask(key, rate, segment_ids.shape)
    keep = jnp.take_along_axis(draws, jnp.maximum(segment_ids - 1, 0), axis=1)
    return jnp.where(keep[..., None], x / (1.0 - rate), 0).astype(x.dtype)


def split_key(key: PRNGKeyArray | None, parts: int) -> list[PRNGKeyArray | None]:
    """Splits a dropout key; None, evaluation, splits into Nones."""
    return [None] * parts if key is None else list(jax.random.split(key, parts))


def _keep_mask(key: PRNGKeyArray, rate: float, shape: tuple[int, ...]) -> Array:
    # 16 random bits settle the rate to 1.5e-5 at half the cost of 32: random bits are a visible
    # share of a training step on a CPU.
    bits = jax.random.bits(key, shape, jnp.uint16)
    return bits >= min(round(rate * 2**16), 2**16 - 1)


class ItemEmbedding(nnx.Module):
    """The item table: rows for ids 1..N, and row 0 for padding.

    The padding row takes no gradient from being looked up.

    Attributes:
      table: float32 [N + 1, D], drawn from N(0, deviation²), the padding row too; by default the
        deviation is 1 / √D, so that an item's vector has about unit length.
    """

    def __init__(
        self,
        num_items: int,
        width: int,
        *,
        deviation: float | None = None,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        draw = nnx.initializers.normal(width**-0.5 if deviation is None else deviation)
        self.table = ItemRows(draw(rngs.params(), (num_items + 1, width), jnp.float32))
        self.dtype = dtype

    def __call__(self, items: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Looks up the rows of `items`, in the compute dtype."""
        rows = jnp.take(self.table[...], items, axis=0).astype(self.dtype)
        return jnp.where((items == 0)[..., None], jax.lax.stop_gradient(rows), rows)


exact_gelu = partial(jax.nn.gelu, approximate=False)


class FeedForward(nnx.Module):
    """Two dense layers with an activation between: W_2 Drop(φ(W_1 x + b_1)) + b_2.

    φ is the exact (erf) GELU unless said otherwise.
    """

    def __init__(
        self,
        width: int,
        hidden_width: int,
        rate: float,
        *,
        activation: Callable[[Array], Array] = exact_gelu,
        deviation: float | None = None,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Args: `deviation` is that of fresh kernels (see `Dense`)."""
        self.expand = Dense(width, hidden_width, deviation=deviation, dtype=dtype, rngs=rngs)
        self.contract = Dense(hidden_width, width, deviation=deviation, dtype=dtype, rngs=rngs)
        self.rate, self.activation = rate, activation

    def __call__(
        self, x: Float[Array, "B T D"], *, dropout_key: PRNGKeyArray | None = None
    ) -> Float[Array, "B T D"]:
        """Maps every position on its own; `dropout_key=None` is evaluation."""
        hidden = self.activation(self.expand(x))
        return self.contract(dropout(hidden, self.rate, dropout_key))


class SwiGLU(nnx.Module):
    """W_3 Drop(SiLU(W_1 x) ⊙ W_2 x), without biases (arXiv 2002.05202).

    W_1 and W_2 are the halves of one kernel, in this order.
    """

    def __init__(
        self,
        width: int,
        hidden_width: int,
        rate: float,
        *,
        deviation: float | None = None,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        """Args: `deviation` is that of fresh kernels (see `Dense`)."""
        fresh: dict[str, Any] = dict(bias=False, deviation=deviation, dtype=dtype, rngs=rngs)
        self.expand = Dense(width, 2 * hidden_width, **fresh)
        self.contract = Dense(hidden_width, width, **fresh)
        self.rate = rate

    def __call__(
        self, x: Float[Array, "B T D"], *, dropout_key: PRNGKeyArray | None = None
    ) -> Float[Array, "B T D"]:
        """Maps every position on its own; `dropout_key=None` is evaluation."""
        gate, value = jnp.split(self.expand(x), 2, axis=-1)
        return self.contract(dropout(jax.nn.silu(gate) * value, self.rate, dropout_key))


class PositionEmbedding(nnx.Module):
    """One learned vector per position, added to the item's embedding.

    Attributes:
      table: float32 [max_length, D], drawn from N(0, deviation²), by default as item vectors are.
    """

    def __init__(
        self,
        max_length: int,
        width: int,
        *,
        deviation: float | None = None,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        draw = nnx.initializers.normal(width**-0.5 if deviation is None else deviation)
        self.table = nnx.Param(draw(rngs.params(), (max_length, width), jnp.float32))
        self.dtype = dtype

    def __call__(
        self, x: Float[Array, "B T D"], positions: Int[Array, "B T"]
    ) -> Float[Array, "B T D"]:
        """Adds the positions' vectors to x.

        Raises:
          ValueError: If a row is longer than the table.
        """
        table = self.table[...]
        if positions.shape[1] > len(table):
            raise ValueError(
                f"rows of {positions.shape[1]} slots, but only {len(table)} positions were "
                "learned: raise the model's max_length or shorten the rows"
            )
        # A position past the end (a history carried on too far) must not pass for the last one.
        return x + jnp.take(table, positions, axis=0, mode="fill").astype(self.dtype)


class Sinusoids(nnx.Module):
    """Fixed sinusoids in the place of learned positions."""

    def __init__(self, width: int):
        self.width = width

    def __call__(
        self, x: Float[Array, "B T D"], positions: Int[Array, "B T"]
    ) -> Float[Array, "B T D"]:
        """Adds the positions' sinusoids to x."""
        return x + sinusoidal_positions(positions, self.width).astype(x.dtype)


class NoPositions(nnx.Module):
    """Stands for position vectors in a model that adds none."""

    def __call__(
        self, x: Float[Array, "B T D"], positions: Int[Array, "B T"]
    ) -> Float[Array, "B T D"]:
        """Returns x."""
        del positions
        return x


def sinusoidal_positions(positions: Int[Array, "B T"], width: int) -> Float[Array, "B T D"]:
    """Fixed sinusoids of the positions, sines then cosines (arXiv 1706.03762, section 3.5)."""
    rates = 10_000.0 ** (-jnp.arange(width // 2, dtype=jnp.float32) / (width // 2))
    angles = positions[..., None].astype(jnp.float32) * rates
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
