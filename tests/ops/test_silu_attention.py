"""Pointwise attention against its definition in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings

from linseqrec.ops.silu_attention import TimeBias, silu_attention, time_bucket
from tests.models.test_linear_cost import sizes
from tests.ops.closeness import assert_close, projected, relative_rms
from tests.ops.layouts import LAYOUT, segment_layouts

BUCKETS = 129


def make(batch, time, seed=0):
    """Inputs by name, float32: two heads, keys of 6, values of 5; and times."""
    random = np.random.default_rng(seed)
    shape = (batch, time, 2)
    inputs = {
        "query": random.normal(size=(*shape, 6)),
        "key": random.normal(size=(*shape, 6)),
        "value": random.normal(size=(*shape, 5)),
        "position_bias": random.normal(size=time + 3),
        "time_bias": random.normal(size=BUCKETS),
    }
    gaps = random.choice([0, 5, 700, 90_000, 20_000_000], size=(2, batch, time))
    times = np.cumsum(gaps[0], axis=1).astype(np.int32)
    inputs = {name: x.astype(np.float32) for name, x in inputs.items()}
    return inputs, (times + gaps[1]).astype(np.int32), times


@partial(jax.jit, static_argnames="block_size")
def apply(inputs, asked, times, segment_ids=None, block_size=64):
    time_bias = TimeBias(inputs["time_bias"], asked, times)
    others = {name: inputs[name] for name in ("query", "key", "value", "position_bias")}
    return silu_attention(
        **others,
        time_bias=time_bias,
        divisor=7.0,
        segment_ids=segment_ids,
        block_size=block_size,
    )


def by_pairs(inputs, asked, times, segment_ids):
    """The definition over all pairs of slots, to be differentiated in float64."""
    seconds = np.abs(np.int64(asked)[:, :, None] - times[:, None, :])
    buckets = np.floor(np.log(np.maximum(seconds, 1)) / 0.301).astype(int)
    time = times.shape[1]
    distance = np.maximum(np.subtract.outer(np.arange(time), np.arange(time)), 0)
    same = (segment_ids[:, :, None] == segment_ids[:, None, :]) & (segment_ids > 0)[:, :, None]
    visible = (same & np.tri(time, dtype=bool))[:, None]
    scores = jnp.einsum("bqhk,bnhk->bhqn", inputs["query"], inputs["key"])
    scores = scores + inputs["position_bias"][distance] + inputs["time_bias"][buckets][:, None]
    weights = jnp.where(visible, scores / (1 + jnp.exp(-scores)) / 7, 0)
    return jnp.einsum("bhqn,bnhv->bqhv", weights, inputs["value"])


def expected_of(inputs, *told):
    """Output and gradients in float64, from the inputs as they are rounded."""
    with jax.enable_x64(True):
        wide = {name: np.asarray(x, np.float64) for name, x in inputs.items()}
        slopes = jax.grad(lambda inputs: projected(by_pairs(inputs, *told)))(wide)
        return jax.tree.map(np.asarray, (by_pairs(wide, *told), slopes))


@settings(max_examples=10, deadline=None)
@given(segment_ids=segment_layouts(*LAYOUT.shape))
@example(segment_ids=LAYOUT)
@pytest.mark.parametrize("block_size", [1, 4, 64])
def test_equals_the_definition_whatever_the_segments(block_size, segment_ids):
    inputs, asked, times = make(*LAYOUT.shape)
    expected, _ = expected_of(inputs, asked, times, segment_ids)
    output = apply(inputs, asked, times, segment_ids, block_size)
    assert_close(output, expected, 2e-6)
    assert np.all(np.asarray(output)[segment_ids == 0] == 0)


@pytest.mark.parametrize("block_size", [4, 64])
def test_gradients_are_those_of_the_definition_and_padding_gets_none(block_size):
    inputs, asked, times = make(*LAYOUT.shape)
    _, expected = expected_of(inputs, asked, times, LAYOUT)
    for name in ("query", "key", "value"):
        inputs[name][LAYOUT == 0] = np.nan
    for array in (asked, times):
        array[LAYOUT == 0] = -7
    slopes = jax.grad(lambda x: projected(apply(x, asked, times, LAYOUT, block_size)))(inputs)
    for name in ("query", "key", "value"):
        assert np.all(np.asarray(slopes[name])[LAYOUT == 0] == 0)
    for name, slope in slopes.items():
        assert relative_rms(slope, expected[name]) <= 1e-5, name


def test_a_row_is_one_segment_where_none_are_given():
    inputs, asked, times = make(2, 9)
    ones = np.ones((2, 9), np.int32)
    np.testing.assert_array_equal(apply(inputs, asked, times), apply(inputs, asked, times, ones))


def test_no_bias_of_time_is_a_bias_of_zeros():
    inputs, asked, times = make(2, 9)
    inputs["time_bias"] = np.zeros_like(inputs["time_bias"])
    others = {name: inputs[name] for name in ("query", "key", "value", "position_bias")}
    bare = silu_attention(**others, divisor=7.0)
    np.testing.assert_allclose(bare, apply(inputs, asked, times), atol=1e-6)


def test_buckets_are_of_the_natural_logarithm():
    seconds = np.array([-100, 0, 1, 2, 3, 60, 3_600, 86_400, 31_556_952, 2**31 - 1], np.int32)
    expected = np.floor(np.log(np.maximum(np.abs(np.int64(seconds)), 1)) / 0.301)
    np.testing.assert_array_equal(time_bucket(jnp.asarray(seconds)), expected)
    assert expected[-1] == 71


def test_bfloat16_inputs_are_summed_in_float32():
    inputs, asked, times = make(*LAYOUT.shape)
    for name in ("query", "key", "value"):
        inputs[name] = jnp.asarray(inputs[name], jnp.bfloat16)
    output = apply(inputs, asked, times, LAYOUT)
    assert output.dtype == jnp.bfloat16
    expected, _ = expected_of(
        {name: np.asarray(x, np.float32) for name, x in inputs.items()}, asked, times, LAYOUT
    )
    assert relative_rms(output, expected) < 1e-2


def test_no_array_of_the_gradient_holds_all_pairs():
    inputs, asked, times = make(1, 1_024)
    traced = jax.make_jaxpr(jax.grad(lambda x: projected(apply(x, asked, times))))(inputs)
    # A block of 64 queries with 1,024 keys in two heads.
    assert max(sizes(traced.jaxpr)) <= 2 * 64 * 1_024


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(key=np.zeros((2, 5, 2, 7))), r"query and key must be \[B, T, H, K\]"),
        (dict(position_bias=np.zeros(4)), r"position_bias must be \[N\] for at least 5 distances"),
        (dict(segment_ids=np.ones((2, 4), int)), r"segment_ids must be \[B, T\] = \(2, 5\)"),
        (
            dict(time_bias=TimeBias(np.zeros(3), np.zeros((2, 5), int), np.zeros((2, 6), int))),
            r"time_bias\.times must be \[B, T\] = \(2, 5\), got \(2, 6\)",
        ),
        (dict(block_size=0), "block_size must be at least 1, got 0"),
    ],
)
def test_what_does_not_fit_is_named(wrong, message):
    inputs, _, _ = make(2, 5)
    del inputs["time_bias"]
    with pytest.raises(ValueError, match=message):
        silu_attention(**(inputs | dict(divisor=1.0) | wrong))
