"""Mamba-2 against its equations in float64."""

import numpy as np
import pytest
from flax import nnx

from linseqrec.models.mamba2 import Mamba2Config
from linseqrec.models.weights import parameter_arrays
from tests.models.reference import (
    assert_bfloat16_stays_near,
    assert_hidden_states,
    dense,
    gelu,
    rms_norm,
    silu,
)

CONFIG = Mamba2Config(
    width=12, heads=3, num_layers=2, key_width=5, value_width=7, kernel=3, chunk_size=4
)


def mixed(x, p, name, config):
    """The mixer: one event after another, one head after another."""
    inputs = x @ p[f"{name}/input/kernel"]
    taps = p[f"{name}/convolution/weight"]
    padded = np.concatenate([np.zeros((len(taps) - 1, inputs.shape[1])), inputs])
    rows = sum(taps[w] * padded[w : w + len(x)] for w in range(len(taps)))
    rows = silu(rows + p[f"{name}/convolution/bias"])
    steps = np.log1p(np.exp(x @ p[f"{name}/step_gate/kernel"] + p[f"{name}/step_bias"]))
    inner, keys = config.heads * config.value_width, config.key_width
    output = np.zeros((len(x), config.heads, config.value_width))
    for head in range(config.heads):
        memory = np.zeros((keys, config.value_width))
        for t, row in enumerate(rows):
            value = row[:inner].reshape(config.heads, -1)[head]
            key, query = row[inner : inner + keys], row[inner + keys :]
            kept = np.exp(-np.exp(p[f"{name}/log_rate"][head]) * steps[t, head])
            memory = kept * memory + steps[t, head] * np.outer(key, value)
            output[t, head] = memory.T @ query + p[f"{name}/skip"][head] * value
    gated = output.reshape(len(x), -1) * silu(x @ p[f"{name}/output_gate/kernel"])
    return rms_norm(p, f"{name}/norm", gated, 1e-5) @ p[f"{name}/output/kernel"]


def equations(p, items, config):
    x = p["embedding/table"][items] * np.sqrt(config.width)
    for layer in range(config.num_layers):
        block = f"blocks/{layer}"
        x = x + mixed(rms_norm(p, f"{block}/mixer_norm", x, 1e-5), p, f"{block}/mixer", config)
        inner = rms_norm(p, f"{block}/feed_forward_norm", x, 1e-5)
        hidden = gelu(dense(p, f"{block}/feed_forward/expand", inner))
        x = x + dense(p, f"{block}/feed_forward/contract", hidden)
    return rms_norm(p, "norm", x, 1e-5)


def test_the_hidden_states_are_the_equations():
    assert_hidden_states(CONFIG, equations)


def test_bfloat16_stays_near():
    assert_bfloat16_stays_near(CONFIG, equations)


def test_it_starts_as_released():
    """Steps and rates lie in their ranges, the output is scaled down by the depth."""
    config = Mamba2Config(heads=40, num_layers=2, value_width=4)
    arrays = parameter_arrays(config.build(3, rngs=nnx.Rngs(0)))
    mixer = {name.partition("mixer/")[2]: x for name, x in arrays.items() if "0/mixer/" in name}
    steps, rates = np.log1p(np.exp(mixer["step_bias"])), np.exp(mixer["log_rate"])
    assert 1e-3 <= steps.min() < 2e-3 and 0.05 < steps.max() <= 0.1
    assert 1 <= rates.min() < 2.5 and 14 < rates.max() <= 16
    assert np.all(mixer["skip"] == 1)
    for name, bound in {
        "input/kernel": 64**-0.5,
        "step_gate/kernel": 64**-0.5,
        "output_gate/kernel": 64**-0.5,
        "output/kernel": 160**-0.5 / 2,
        "convolution/weight": 0.5,
    }.items():
        assert np.abs(mixer[name]).max() == pytest.approx(bound, rel=1e-2)
        assert mixer[name].std() == pytest.approx(bound / 3**0.5, rel=5e-2)
