"""LRURec against its equations in complex128."""

import numpy as np
import pytest
from flax import nnx

from linseqrec.models.lrurec import LRURecConfig
from linseqrec.models.weights import parameter_arrays
from tests.models.reference import (
    assert_bfloat16_stays_near,
    assert_hidden_states,
    dense,
    gelu,
    layer_norm,
)

CONFIG = LRURecConfig(width=6, num_layers=2)


def unit(x, p, name):
    """The recurrence with the released code's complex matrices."""
    kernel = np.split(p[f"{name}/input/kernel"], 2, axis=1)
    bias = np.split(p[f"{name}/input/bias"], 2)
    # W_out is stored so that the real part is a real product.
    out_real, out_imaginary = np.split(p[f"{name}/output/kernel"], 2)
    w_out = out_real - 1j * out_imaginary
    gain = np.exp(p[f"{name}/log_gain"])
    multiplier = np.exp(-np.exp(p[f"{name}/log_rate"]) + 1j * np.exp(p[f"{name}/log_angle"]))
    inputs = gain * (x @ (kernel[0] + 1j * kernel[1]) + (bias[0] + 1j * bias[1]))
    state, output = np.zeros(len(multiplier), complex), []
    for row in inputs:
        state = multiplier * state + row
        output.append((state @ w_out).real + p[f"{name}/output/bias"])
    return np.array(output)


def equations(p, items, config):
    x = layer_norm(p, "norm", p["embedding/table"][items], 1e-5)
    for layer in range(config.num_layers):
        block = f"blocks/{layer}"
        x = layer_norm(p, f"{block}/unit_norm", x + unit(x, p, f"{block}/unit"), 1e-5)
        hidden = gelu(dense(p, f"{block}/feed_forward/expand", x))
        fed = dense(p, f"{block}/feed_forward/contract", hidden)
        x = layer_norm(p, f"{block}/feed_forward_norm", x + fed, 1e-5)
    return x


def test_the_hidden_states_are_the_equations():
    assert_hidden_states(CONFIG, equations)


def test_bfloat16_stays_near():
    assert_bfloat16_stays_near(CONFIG, equations)


def test_it_starts_as_released():
    """Multipliers in a ring, gains that keep the inputs' size, all else small and cut off."""
    arrays = parameter_arrays(LRURecConfig(width=200).build(30, rngs=nnx.Rngs(0)))
    unit = {name.partition("unit/")[2]: x for name, x in arrays.items() if "0/unit/" in name}
    radius, angle = np.exp(-np.exp(unit["log_rate"])), np.exp(unit["log_angle"])
    assert 0.8 <= radius.min() < 0.805 and 0.985 < radius.max() <= 0.99
    # Uniform in the area of the ring.
    assert np.mean(radius**2) == pytest.approx((0.8**2 + 0.99**2) / 2, abs=0.02)
    assert 0 < angle.min() < 0.1 and 6.2 < angle.max() < 6.284
    np.testing.assert_allclose(np.exp(unit["log_gain"]), np.sqrt(1 - radius**2), rtol=1e-5)
    small = ["embedding/table", "blocks/1/feed_forward/expand/bias", "blocks/0/unit/output/kernel"]
    for name in small:
        assert 0.03 < np.abs(arrays[name]).max() <= 0.04
        # Of a normal of .02 cut at two deviations.
        assert arrays[name].std() == pytest.approx(0.0176, rel=0.1)
    assert np.all(arrays["norm/scale"] == 1) and np.all(arrays["norm/bias"] == 0)
