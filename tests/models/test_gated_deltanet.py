"""Gated DeltaNet against its equations in float64, and its stream against the whole."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from linseqrec.events import Events
from linseqrec.models.gated_deltanet import GatedDeltaNetConfig
from linseqrec.models.weights import load_parameters, parameter_arrays
from tests.models.reference import gelu, run, sigmoid, silu

CONFIG = GatedDeltaNetConfig(
    width=12, heads=3, num_layers=2, key_width=5, value_width=7, kernel=3, chunk_size=4
)


def normed(x, scale, epsilon):
    return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + epsilon) * scale


def mixed(x, p, name, config):
    """The mixer: one event after another, one head after another."""
    inputs = x @ p[f"{name}/query_key_value/kernel"]
    taps = p[f"{name}/convolution/weight"]
    padded = np.concatenate([np.zeros((len(taps) - 1, inputs.shape[1])), inputs])
    rows = silu(sum(taps[w] * padded[w : w + len(x)] for w in range(len(taps))))
    keys = config.heads * config.key_width
    output = np.zeros((len(x), config.heads, config.value_width))
    decay = np.exp(
        -np.exp(p[f"{name}/log_rate"])
        * np.log1p(np.exp(x @ p[f"{name}/decay_gate/kernel"] + p[f"{name}/step_bias"]))
    )
    beta = sigmoid(x @ p[f"{name}/write_strength/kernel"]) * (1 + config.negative_eigenvalues)
    for head in range(config.heads):
        memory = np.zeros((config.key_width, config.value_width))
        for t, row in enumerate(rows):
            q, k, v = (
                part.reshape(config.heads, -1)[head] for part in np.split(row, [keys, 2 * keys])
            )
            q = q / np.sqrt(q @ q + 1e-6) / np.sqrt(config.key_width)
            k = k / np.sqrt(k @ k + 1e-6)
            memory = decay[t, head] * memory
            memory = memory + np.outer(k, beta[t, head] * (v - memory.T @ k))
            output[t, head] = memory.T @ q
    output = normed(output, p[f"{name}/norm/scale"], 1e-5).reshape(len(x), -1)
    gate = silu(x @ p[f"{name}/output_gate/kernel"])
    return (output * gate) @ p[f"{name}/output/kernel"]


def equations(p, items, config):
    x = p["embedding/table"][items] * np.sqrt(config.width)
    for layer in range(config.num_layers):
        block = f"blocks/{layer}"
        x = x + mixed(normed(x, p[f"{block}/mixer_norm/scale"], 1e-6), p, f"{block}/mixer", config)
        inner = normed(x, p[f"{block}/feed_forward_norm/scale"], 1e-6)
        for half in ("expand", "contract"):
            kernel, bias = (p[f"{block}/feed_forward/{half}/{name}"] for name in ("kernel", "bias"))
            inner = inner @ kernel + bias
            if half == "expand":
                inner = gelu(inner)
        x = x + inner
    return normed(x, p["norm/scale"], 1e-6)


def build(config, scale=0.3):
    model = config.build(30, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(2)
    arrays = {
        name: (array + scale * rng.normal(size=array.shape)).astype(np.float32)
        for name, array in parameter_arrays(model).items()
    }
    load_parameters(model, arrays)
    return model, {name: array.astype(np.float64) for name, array in arrays.items()}


def row(items, start=0):
    items = np.asarray(items, np.int32)[None]
    slots = start + np.arange(items.shape[1], dtype=np.int32)[None]
    return Events(items, np.zeros_like(items), np.ones_like(items), slots)


@pytest.mark.parametrize("negative_eigenvalues", [False, True])
def test_the_hidden_states_are_the_equations(negative_eigenvalues):
    config = dataclasses.replace(CONFIG, negative_eigenvalues=negative_eigenvalues)
    model, arrays = build(config)
    items = np.random.default_rng(0).integers(1, 31, 17)
    hidden = np.asarray(run(model, row(items)).hidden)[0]
    np.testing.assert_allclose(hidden, equations(arrays, items, config), atol=2e-5)


def test_a_history_in_parts_equals_the_whole():
    """Event by event, and in parts of any size."""
    model, _ = build(CONFIG)
    items = np.random.default_rng(0).integers(1, 31, 17)
    whole = run(model, row(items))
    for cuts in (range(18), (0, 1, 9, 17)):
        state, parts = None, []
        for start, stop in zip(list(cuts)[:-1], list(cuts)[1:], strict=True):
            encoding = run(model, row(items[start:stop], start), state)
            state = encoding.state
            parts.append(encoding.hidden)
        np.testing.assert_allclose(np.concatenate(parts, axis=1), whole.hidden, atol=2e-5)
        for got, wanted in zip(*map(jax.tree.leaves, (state, whole.state)), strict=True):
            np.testing.assert_allclose(got, wanted, atol=2e-5)


def test_bfloat16_stays_near():
    model, arrays = build(dataclasses.replace(CONFIG, dtype="bfloat16"), scale=0.1)
    items = np.random.default_rng(0).integers(1, 31, 17)
    hidden = np.asarray(run(model, row(items)).hidden, np.float64)[0]
    expected = equations(arrays, items, CONFIG)
    assert np.sqrt(np.mean((hidden - expected) ** 2) / np.mean(expected**2)) < 2e-2


def test_fresh_heads_keep_half_of_their_memory_for_200_and_2000_events_in_turn():
    model = GatedDeltaNetConfig(heads=3, key_width=4, value_width=4).build(3, rngs=nnx.Rngs(0))
    mixer = model.blocks[0].mixer
    log_decay, _ = mixer.gates(np.zeros((1, 1, 64), np.float32))
    np.testing.assert_allclose(
        np.exp(log_decay[0, 0] * np.array([200, 2_000, 200])), 0.5, rtol=1e-4
    )
