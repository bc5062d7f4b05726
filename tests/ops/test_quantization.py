"""Residual quantisation against a search by loops in float64; ties, gradients, usage."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linseqrec.ops.quantization import (
    code_counts,
    masked_mean,
    nearest_code,
    perplexity,
    quantization_loss,
    relative_error,
    residual_quantization,
    straight_through,
)
from tests.ops.closeness import assert_close

LEVELS, CODES, WIDTH = 3, 7, 5


@pytest.fixture(params=["cpu", "accelerator"])
def platform(request, monkeypatch):
    """Computes here what is for a CPU, or what is for any other platform."""
    if request.param == "accelerator":
        choose = lambda *operands, cpu, default: default(*operands)  # noqa: E731
        monkeypatch.setattr(jax.lax, "platform_dependent", choose)


def vectors(shape=(4, 6), seed=0):
    return np.random.default_rng(seed).normal(size=(*shape, WIDTH)).astype(np.float32)


def books(seed=1):
    return np.random.default_rng(seed).normal(size=(LEVELS, CODES, WIDTH)).astype(np.float32)


def search(x, codebook):
    """The nearest code of one vector, by its distances in float64; the first of several."""
    distances = [float(((np.float64(x) - np.float64(code)) ** 2).sum()) for code in codebook]
    return distances.index(min(distances))


def by_loops(x, codebooks):
    """Codes and residuals [..., L(, D)] in float64."""
    codes = np.zeros((*x.shape[:-1], len(codebooks)), int)
    residuals = np.zeros((*x.shape[:-1], *codebooks.shape[::2]))
    for place in np.ndindex(x.shape[:-1]):
        rest = np.float64(x[place])
        for level, codebook in enumerate(codebooks):
            residuals[(*place, level)] = rest
            codes[(*place, level)] = search(rest, codebook)
            rest = rest - codebook[codes[(*place, level)]]
    return codes, residuals


def test_the_nearest_code_is_the_searched_one():
    x, codebook = vectors((40, 30)), books()[0]
    expected = [[search(vector, codebook) for vector in row] for row in x]
    found = nearest_code(jnp.asarray(x), jnp.asarray(codebook))
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, expected)
    assert len(np.unique(found)) == CODES


def test_ties_go_to_the_lowest_index():
    """Small integers, so that distances are exact: copies, and different codes equally far."""
    rng = np.random.default_rng(2)
    x = rng.integers(-2, 3, (300, 3)).astype(np.float32)
    codebook = rng.integers(-2, 3, (20, 3)).astype(np.float32)
    codebook[13] = codebook[4]
    distances = ((x[:, None] - codebook) ** 2).sum(-1)
    ties = (distances == distances.min(axis=1, keepdims=True)).sum(axis=1)
    assert (ties > 1).sum() > 100
    expected = [search(vector, codebook) for vector in x]
    np.testing.assert_array_equal(nearest_code(x, codebook), expected)


def test_the_search_is_float32_whatever_comes_in():
    """Codes that bfloat16 products could not tell apart."""
    codebook = jnp.array([[1.0], [1.0 + 2**-9]])
    x = jnp.array([[1.0 + 2**-7]], jnp.bfloat16)
    np.testing.assert_array_equal(nearest_code(x, codebook), [1])


def test_the_search_holds_no_difference_of_every_vector_and_code():
    tokens, codes, width = 512, 64, 32
    shapes = [
        jax.ShapeDtypeStruct(shape, jnp.float32) for shape in [(tokens, width), (codes, width)]
    ]
    memory = jax.jit(nearest_code).lower(*shapes).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * tokens * codes * width / 8


@pytest.mark.usefixtures("platform")
def test_levels_quantise_what_the_levels_before_left():
    x, codebooks = vectors(), books()
    codes, residuals = by_loops(x, codebooks)
    quantized = residual_quantization(x, codebooks)
    np.testing.assert_array_equal(quantized.codes, codes)
    assert_close(quantized.residuals, residuals, 1e-6)
    retrieved = np.stack([codebooks[level][codes[..., level]] for level in range(LEVELS)], axis=-2)
    np.testing.assert_array_equal(quantized.retrieved, retrieved)
    expected = ((x - retrieved.sum(-2)) ** 2).sum(-1) / (x**2).sum(-1)
    assert_close(relative_error(quantized), expected, 1e-5)
    assert relative_error(residual_quantization(np.zeros((1, WIDTH)), 0 * codebooks)) == 1


@pytest.mark.usefixtures("platform")
def test_the_loss_and_where_its_gradients_go():
    """Codebooks are drawn by the first term, the vectors by the second, through no other level."""
    x, codebooks = vectors(), books()
    real = np.random.default_rng(3).random(x.shape[:-1]) < 0.6
    codes, residuals = by_loops(x, codebooks)
    missed = residuals - np.stack(
        [codebooks[level][codes[..., level]] for level in range(LEVELS)], axis=-2
    )
    count = real.sum() * WIDTH

    def loss(x, codebooks):
        return quantization_loss(residual_quantization(x, codebooks), real)

    value, (to_x, to_books) = jax.value_and_grad(loss, argnums=(0, 1))(x, codebooks)
    assert_close(value, 1.25 * (missed[real] ** 2).sum() / count, 1e-6)
    assert_close(to_x, 0.25 * 2 * missed.sum(-2) * real[..., None] / count, 1e-6)
    expected = np.zeros_like(codebooks, np.float64)
    for place in zip(*np.nonzero(real), strict=True):
        for level in range(LEVELS):
            expected[level, codes[(*place, level)]] -= 2 * missed[(*place, level)] / count
    assert_close(to_books, expected, 1e-6)
    assert quantization_loss(residual_quantization(x, codebooks), np.zeros_like(real)) == 0


@pytest.mark.parametrize(("where", "scatters"), [("cpu", True), ("cuda", False), ("tpu", False)])
def test_accelerators_look_codes_up_without_a_scatter(where, scatters):
    def loss(x, codebooks, real):
        quantized = residual_quantization(x, codebooks)
        counts = code_counts(quantized.codes, CODES, real)
        return quantization_loss(quantized, real) + counts.sum()

    run = jax.jit(jax.value_and_grad(loss, argnums=1))
    traced = run.trace(vectors(), books(), np.ones((4, 6), bool))
    text = traced.lower(lowering_platforms=(where,)).as_text()
    assert ("stablehlo.scatter" in text) == scatters
    assert "HIGHEST" in text


def test_straight_through_has_one_value_and_the_other_gradient():
    x, other = jnp.array([1.0, 2.0]), jnp.array([5.0, -3.0])
    np.testing.assert_array_equal(straight_through(x, other), other)
    of = jax.grad(lambda x, other: (straight_through(x, other) ** 2).sum(), argnums=(0, 1))
    np.testing.assert_array_equal(of(x, other)[0], 2 * other)
    np.testing.assert_array_equal(of(x, other)[1], 0)


def test_the_relative_error_has_no_gradient():
    gradient = jax.grad(lambda x: relative_error(residual_quantization(x, books())).sum())
    np.testing.assert_array_equal(gradient(vectors()), 0)


@pytest.mark.usefixtures("platform")
def test_counts_are_of_real_vectors_and_perplexity_is_the_number_of_codes_used():
    codes = np.array([[[0, 2], [3, 2], [3, 0]], [[1, 2], [0, 1], [2, 2]]])
    real = np.array([[True, True, False], [True, True, False]])
    counts = code_counts(codes, 4, real)
    np.testing.assert_array_equal(counts, [[2, 1, 0, 1], [0, 1, 3, 0]])
    entropies = [1.5 * np.log(2), -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))]
    assert_close(perplexity(counts), np.exp(entropies), 1e-6)
    even = perplexity(np.array([[5.0] * 8, [0.0] * 8, [0, 0, 9] + [0] * 5], np.float32))
    assert_close(even, [8, 1, 1], 1e-6)


def test_a_masked_mean_reads_nothing_else():
    x = np.array([1.0, np.nan, 4.0], np.float32)
    assert masked_mean(x, np.array([True, False, True])) == 2.5
    assert masked_mean(x, np.zeros(3, bool)) == 0


@pytest.mark.usefixtures("without_type_checks")
def test_codebooks_that_do_not_fit_are_refused():
    for wrong in (books()[0], books()[..., 1:]):
        with pytest.raises(ValueError, match=r"codebooks must be \[L, K, 5\]"):
            residual_quantization(vectors(), wrong)
