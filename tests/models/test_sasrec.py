"""SASRec against its equations in float64."""

import dataclasses

import numpy as np
import pytest
from flax import nnx

from linseqrec.events import Events
from linseqrec.models.sasrec import SASRecConfig
from linseqrec.models.weights import load_parameters, parameter_arrays
from tests.models.reference import run

CONFIG = SASRecConfig(width=12, heads=3, num_layers=2, max_length=20)


def normed(x, p, name):
    spread = np.sqrt(x.var(-1, keepdims=True) + 1e-8)
    return (x - x.mean(-1, keepdims=True)) / spread * p[f"{name}/scale"] + p[f"{name}/bias"]


def affine(x, p, name):
    return x @ p[f"{name}/kernel"] + p[f"{name}/bias"]


def equations(p, items, config):
    """One history at a time, a loop over heads and positions."""
    x = p["embedding/table"][items] * np.sqrt(config.width) + p["positions/table"][: len(items)]
    size = config.width // config.heads
    for layer in range(config.num_layers):
        block = f"blocks/{layer}"
        mixed = np.zeros_like(x)
        projected = affine(
            normed(x, p, f"{block}/attention_norm"), p, f"{block}/attention/query_key_value"
        )
        query, key, value = np.split(projected, 3, axis=-1)
        for head in range(config.heads):
            own = slice(head * size, (head + 1) * size)
            for now in range(len(items)):
                scores = key[: now + 1, own] @ query[now, own] / np.sqrt(size)
                weights = np.exp(scores - scores.max())
                mixed[now, own] = weights / weights.sum() @ value[: now + 1, own]
        x = x + affine(mixed, p, f"{block}/attention/output")
        inner = affine(
            normed(x, p, f"{block}/feed_forward_norm"), p, f"{block}/feed_forward/expand"
        )
        x = x + affine(np.maximum(inner, 0), p, f"{block}/feed_forward/contract")
    return normed(x, p, "norm")


def build(config, scale=0.3):
    model = config.build(30, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(2)
    arrays = {
        name: (array + scale * rng.normal(size=array.shape)).astype(np.float32)
        for name, array in parameter_arrays(model).items()
    }
    load_parameters(model, arrays)
    return model, {name: array.astype(np.float64) for name, array in arrays.items()}


def history(items):
    items = np.asarray(items, np.int32)[None]
    slots = np.arange(items.shape[1], dtype=np.int32)[None]
    return Events(items, np.zeros_like(items), np.ones_like(items), slots)


def test_the_hidden_states_are_the_equations():
    model, arrays = build(CONFIG)
    items = np.random.default_rng(0).integers(1, 31, 17)
    hidden = np.asarray(run(model, history(items)).hidden)[0]
    np.testing.assert_allclose(hidden, equations(arrays, items, CONFIG), atol=2e-5)


def test_bfloat16_stays_near():
    model, arrays = build(dataclasses.replace(CONFIG, dtype="bfloat16"), scale=0.1)
    items = np.random.default_rng(0).integers(1, 31, 17)
    hidden = np.asarray(run(model, history(items)).hidden, np.float64)[0]
    expected = equations(arrays, items, CONFIG)
    assert np.sqrt(np.mean((hidden - expected) ** 2) / np.mean(expected**2)) < 2e-2


def test_what_it_cannot_serve_is_refused():
    model, _ = build(CONFIG)
    with pytest.raises(ValueError, match="rows of 21 slots, but only 20 positions were learned"):
        model(history(np.ones(21)))
    with pytest.raises(ValueError, match="carries no state"):
        model(history([1, 2]), state=())
    with pytest.raises(ValueError, match="width 64 must be a multiple of heads 3"):
        SASRecConfig(heads=3)
