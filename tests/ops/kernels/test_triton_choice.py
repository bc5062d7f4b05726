"""Triton kernels are taken on a GPU only where they agree with XLA.

No GPU is needed: an implementation of XLA stands in for the kernels.
"""

import contextlib
import warnings

import jax
import jax.numpy as jnp
import pytest

from linseqrec.ops import gated_delta_rule, linear_attention, softmax_attention
from linseqrec.ops.kernels import (
    gated_delta_rule_triton,
    linear_attention_triton,
    softmax_attention_triton,
    triton_choice,
)


def by_xla(*arrays):
    q, k, v, log_decay, beta, segment_ids, initial_state = arrays
    return gated_delta_rule.gated_delta_rule(
        q,
        k,
        v,
        log_decay,
        beta,
        segment_ids=segment_ids,
        initial_state=initial_state,
        implementation="associative",
    )


def scaled(factor):
    """Kernels whose output is that of XLA times a factor."""

    def kernels(*arrays):
        output, state = by_xla(*arrays)
        return output * factor, state

    return kernels


def without_state(*arrays):
    *arrays, initial_state = arrays
    return by_xla(*arrays, 0 * initial_state)


def doubled_state(*arrays):
    output, state = by_xla(*arrays)
    return output, 2 * state


def broken(*arrays):
    raise RuntimeError("no such instruction")


@pytest.fixture
def gpu(monkeypatch):
    """A machine that says it has a GPU; gpu(kernels) sets what the gated delta rule's compute."""
    monkeypatch.delenv("LINSEQREC_TRITON", raising=False)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(triton_choice, "unfit", lambda widths, dtype: None)
    gated_delta_rule._kernels_agree.cache_clear()
    yield lambda kernels: monkeypatch.setattr(gated_delta_rule_triton, "gated_delta_rule", kernels)
    gated_delta_rule._kernels_agree.cache_clear()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kernels_that_agree_are_taken_without_a_word(gpu, dtype):
    gpu(by_xla)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert gated_delta_rule._kernels_agree(32, 64, dtype)


@pytest.mark.parametrize(
    ("kernels", "reason"),
    [
        (scaled(1.01), "their errors are 1.0e-02"),
        (without_state, "their errors are"),
        (doubled_state, "their errors are"),
        (scaled(float("nan")), "their errors are inf"),
        (broken, "RuntimeError: no such instruction"),
    ],
    ids=["output", "state before", "state after", "not a number", "not compiled"],
)
def test_kernels_that_do_not_agree_are_named(gpu, kernels, reason):
    gpu(kernels)
    with pytest.warns(UserWarning, match=f"gated delta rule do not agree with XLA .*{reason}"):
        assert not gated_delta_rule._kernels_agree(32, 32, "float32")


def test_a_wrong_gradient_is_seen(gpu):
    @jax.custom_vjp
    def kernels(*arrays):
        return by_xla(*arrays)

    def backward(residuals, cotangents):
        *gradients, ids, state = jax.vjp(by_xla, *residuals)[1](cotangents)
        return (gradients[0] * 1.1, *gradients[1:], ids, state)

    kernels.defvjp(lambda *arrays: (by_xla(*arrays), arrays), backward)
    gpu(kernels)
    with pytest.warns(UserWarning, match="their errors are"):
        assert not gated_delta_rule._kernels_agree(32, 32, "float32")


def lowered_for_cuda():
    """A program of the rule for CUDA, as text; its factor tells the kernels from XLA's form."""
    row = jnp.ones((1, 70, 2, 32))
    gates = jnp.zeros((1, 70, 2))

    @jax.jit
    def program(row, gates):
        return gated_delta_rule.gated_delta_rule(row, row, row, gates, gates)[0]

    return program.trace(row, gates).lower(lowering_platforms=("cuda",)).as_text()


FACTOR = 1.000123
SHOWN = "1.000123"


def test_a_program_has_the_kernels_where_they_agree(gpu):
    # The check runs while JAX traces the program, once for all programs of the process.
    gpu(scaled(FACTOR))
    assert SHOWN in lowered_for_cuda()
    gpu(broken)
    with pytest.raises(RuntimeError, match="no such instruction"):
        lowered_for_cuda()


def test_a_program_has_xlas_form_where_they_do_not(gpu, monkeypatch):
    gpu(scaled(1.2))
    with pytest.warns(UserWarning, match="do not agree"):
        assert "1.2" not in lowered_for_cuda()
    monkeypatch.setenv("LINSEQREC_TRITON", "1")
    assert "1.2" in lowered_for_cuda()
    monkeypatch.setenv("LINSEQREC_TRITON", "0")
    gpu(broken)
    assert "1.2" not in lowered_for_cuda()


@pytest.mark.parametrize("context", ["mesh", "device", "shard_map", "promotion"])
def test_what_surrounds_a_program_does_not_reach_the_check(gpu, context):
    gpu(by_xla)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    around = {
        "mesh": lambda: jax.set_mesh(mesh),
        "device": lambda: jax.default_device(jax.devices()[0]),
        "shard_map": contextlib.nullcontext,
        "promotion": lambda: jax.numpy_rank_promotion("raise"),
    }
    agrees = []

    def ask(x):
        agrees.append(
            triton_choice.by_default(lambda: gated_delta_rule._kernels_agree(32, 32, "float32"))
        )
        return x

    spec = jax.sharding.PartitionSpec("data")
    if context == "shard_map":
        # Not within jit: JAX runs it as it reads it.
        ask = jax.shard_map(ask, mesh=mesh, in_specs=spec, out_specs=spec)
    with around[context](), warnings.catch_warnings():
        warnings.simplefilter("error")
        ask(jnp.ones(2))
    assert agrees == [True]


def test_only_0_and_1_are_settings(gpu, monkeypatch):
    monkeypatch.setenv("LINSEQREC_TRITON", "true")
    with pytest.raises(ValueError, match="LINSEQREC_TRITON is 'true'.*: it must be 0 or 1"):
        triton_choice.by_default(lambda: True)


def test_nothing_is_checked_where_there_is_no_gpu(monkeypatch):
    monkeypatch.delenv("LINSEQREC_TRITON", raising=False)
    assert not triton_choice.by_default(lambda: pytest.fail("it was asked"))


def attention_by_xla(query, key, value, segment_ids, *, reach, behind, scale):
    return softmax_attention.softmax_attention(
        query,
        key,
        value,
        segment_ids=segment_ids,
        scale=scale,
        window=None if reach is None else reach - behind,
        behind=behind,
        implementation="dense",
    )


def without_window(query, key, value, segment_ids, *, reach, behind, scale):
    del reach, behind
    return attention_by_xla(query, key, value, segment_ids, reach=None, behind=0, scale=scale)


def sums_by_xla(query, key, value, first, second, epsilon, segment_ids, key_value, key_sum):
    output, state = linear_attention.linear_attention(
        query,
        key,
        value,
        denominator_query=first,
        denominator_key=second,
        epsilon=epsilon,
        segment_ids=segment_ids,
        initial_state=linear_attention.LinearAttentionState(key_value, key_sum),
        implementation="associative",
    )
    return output, *state


def without_past(*arrays):
    *arrays, key_value, key_sum = arrays
    return sums_by_xla(*arrays, 0 * key_value, key_sum)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_other_operations_are_checked_alike(gpu, monkeypatch, dtype):
    monkeypatch.setattr(softmax_attention_triton, "softmax_attention", attention_by_xla)
    monkeypatch.setattr(linear_attention_triton, "linear_attention", sums_by_xla)
    attention = softmax_attention._kernels_agree.__wrapped__
    sums = linear_attention._kernels_agree.__wrapped__
    assert attention(32, 64, dtype)
    assert sums((32, 32, 64), dtype) and sums((32, 32, 64, 16, 16), dtype)
    monkeypatch.setattr(softmax_attention_triton, "softmax_attention", without_window)
    monkeypatch.setattr(linear_attention_triton, "linear_attention", without_past)
    with pytest.warns(UserWarning, match="softmax attention do not agree"):
        assert not attention(32, 64, dtype)
    with pytest.warns(UserWarning, match="linear attention do not agree"):
        assert not sums((32, 32, 64), dtype)
