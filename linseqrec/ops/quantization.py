"""Residual vector quantisation: a vector as the sum of one code from each of several codebooks.

Axes: L levels, K codes, D width.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Quantization(NamedTuple):
    """A vector's residual quantisation.

    Attributes:
      codes: int32 [..., L], the code of each level.
      residuals: float32 [..., L, D], what each level quantised: x minus the codes of the levels
        before it.
      retrieved: float32 [..., L, D], the codes themselves; differentiable in the codebooks.
    """

    codes: Int[Array, "... L"]
    residuals: Float[Array, "... L D"]
    retrieved: Float[Array, "... L D"]


def nearest_code(x: Float[Array, "... D"], codebook: Float[Array, "K D"]) -> Int[Array, "..."]:
    """The code at the least Euclidean distance, searched in float32; the lowest index of a tie.

    Compares ‖c‖² − 2⟨x, c⟩, which is the squared distance up to ‖x‖², the same for all codes; so
    nothing larger than [..., K] is held. Two minima, of the distances and of the codes that have
    it, take a quarter of the time of `argmin` on a CPU.

    Args:
      x: [..., D], any float dtype.
      codebook: [K, D].

    Returns:
      int32 [...], in 0..K − 1.
    """
    x, codebook = x.astype(jnp.float32), codebook.astype(jnp.float32)
    products = jnp.einsum("...d,kd->...k", x, codebook, precision=jax.lax.Precision.HIGHEST)
    distances = jnp.sum(jnp.square(codebook), axis=-1) - 2 * products
    nearest = distances == jnp.min(distances, axis=-1, keepdims=True)
    last = len(codebook) - 1
    # The last code also where x is not a number.
    return jnp.min(jnp.where(nearest, jnp.arange(last + 1, dtype=jnp.int32), last), axis=-1)


def _look_up(codebook: Float[Array, "K D"], code: Int[Array, "..."]) -> Float[Array, "... D"]:
    """The rows of a float32 codebook.

    On accelerators they are a product with one-hot rows, which is exact: the gradient of a gather
    is a scatter of all events into few codes, which wait for each other. On a CPU the product makes
    a quantisation and its gradient take twice as long.
    """

    def by_product(codebook: Array, code: Array) -> Array:
        chosen = jax.nn.one_hot(code, codebook.shape[0], dtype=codebook.dtype)
        return jnp.einsum("...k,kd->...d", chosen, codebook, precision=jax.lax.Precision.HIGHEST)

    def by_gather(codebook: Array, code: Array) -> Array:
        return jnp.take(codebook, code, axis=0)

    return jax.lax.platform_dependent(codebook, code, cpu=by_gather, default=by_product)


def residual_quantization(
    x: Float[Array, "... D"], codebooks: Float[Array, "L K D"]
) -> Quantization:
    """Quantises x, then what is left of it, level by level.

        res_0 = x;  c_l = argmin_j ‖res_{l−1} − C_l[j]‖²;  res_l = res_{l−1} − C_l[c_l]

    The residuals are differentiable in x alone: a level's error does not move the codes of the
    levels before it. Source: residual vector quantisation as in SoundStream (arXiv 2107.03312).

    Args:
      x: [..., D], any float dtype.
      codebooks: [L, K, D], one per level.

    Returns:
      Codes, residuals and retrieved codes of each level.

    Raises:
      ValueError: If the codebooks are not [L, K, D] with x's D.
    """
    if codebooks.ndim != 3 or codebooks.shape[-1] != x.shape[-1]:
        raise ValueError(f"codebooks must be [L, K, {x.shape[-1]}], got {codebooks.shape}")
    residual = x.astype(jnp.float32)
    codes, residuals, retrieved = [], [], []
    for codebook in codebooks.astype(jnp.float32):
        code = nearest_code(residual, codebook)
        codes.append(code)
        residuals.append(residual)
        retrieved.append(_look_up(codebook, code))
        residual = residual - jax.lax.stop_gradient(retrieved[-1])
    return Quantization(
        jnp.stack(codes, axis=-1), jnp.stack(residuals, axis=-2), jnp.stack(retrieved, axis=-2)
    )


def straight_through(
    x: Float[Array, "..."], replacement: Float[Array, "..."]
) -> Float[Array, "..."]:
    """The replacement's value with x's gradient: x + sg(replacement − x)."""
    return x + jax.lax.stop_gradient(replacement - x)


def quantization_loss(quantized: Quantization, real: Bool[Array, "..."]) -> Float[Array, ""]:
    """Σ_l (‖sg(res_{l−1}) − C_l[c_l]‖² + ¼ ‖res_{l−1} − sg(C_l[c_l])‖²) / D.

    The first term moves the codes to the residuals, the second the residuals to the codes. Source:
    VQ-VAE (arXiv 1711.00937), at each level. The loss is a mean over the features, like a
    reconstruction loss. With a sum, the second term would dominate the reconstruction loss and make
    all vectors equal, which are easy to quantise and carry no information.

    Args:
      quantized: The quantisation of [...] vectors.
      real: [...], which of them count.

    Returns:
      The mean over the vectors that count, float32; 0 where none does.
    """
    residuals, retrieved = quantized.residuals, quantized.retrieved
    square = lambda missed: jnp.sum(jnp.mean(jnp.square(missed), axis=-1), axis=-1)  # noqa: E731
    codebook = square(jax.lax.stop_gradient(residuals) - retrieved)
    commit = square(residuals - jax.lax.stop_gradient(retrieved))
    return masked_mean(codebook + 0.25 * commit, real)


def relative_error(quantized: Quantization) -> Float[Array, "..."]:
    """ρ = ‖x − Σ_l C_l[c_l]‖² / ‖x‖², the share of a vector's square that no code explains.

    It has no gradient. It is 1 for a zero vector with zero codes, and above 1 if the sum of the
    codes is farther from x than 0 is.
    """
    x = quantized.residuals[..., 0, :]
    error = x - jnp.sum(quantized.retrieved, axis=-2)
    square = lambda vector: jnp.sum(jnp.square(vector), axis=-1) + 1e-12  # noqa: E731
    return jax.lax.stop_gradient(square(error) / square(x))


def code_counts(
    codes: Int[Array, "... L"], num_codes: int, real: Bool[Array, "..."]
) -> Float[Array, "L K"]:
    """How often each code of each level was taken, over the vectors that count; float32."""
    levels = codes.shape[-1]

    def by_sum(codes: Array, real: Array) -> Array:
        chosen = codes[..., None] == jnp.arange(num_codes)
        counted = jnp.where(real[:, None, None], chosen, False)
        return jnp.sum(counted, axis=0, dtype=jnp.float32)

    def by_scatter(codes: Array, real: Array) -> Array:
        flat = codes + num_codes * jnp.arange(levels)
        weights = jnp.broadcast_to(real[:, None], flat.shape).astype(jnp.float32)
        counts = jnp.zeros(levels * num_codes, jnp.float32).at[flat].add(weights)
        return counts.reshape(levels, num_codes)

    # As in `_look_up`.
    return jax.lax.platform_dependent(
        codes.reshape(-1, levels), real.reshape(-1), cpu=by_scatter, default=by_sum
    )


def perplexity(counts: Float[Array, "... K"]) -> Float[Array, "..."]:
    """The number of codes in effective use, exp of the entropy of their shares: 1 to K.

    Without any use it is 1.
    """
    shares = counts / jnp.maximum(jnp.sum(counts, axis=-1, keepdims=True), 1.0)
    return jnp.exp(-jnp.sum(jax.scipy.special.xlogy(shares, shares), axis=-1))


def masked_mean(x: Float[Array, "..."], where: Bool[Array, "..."]) -> Float[Array, ""]:
    """The mean of x over the places that count, of the same shape; 0 where none does."""
    return jnp.sum(jnp.where(where, x, 0)) / jnp.maximum(jnp.sum(where), 1)
