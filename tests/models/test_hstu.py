"""HSTU against its equations in float64."""

import dataclasses

import numpy as np
import pytest
from flax import nnx

from linseqrec.events import Events
from linseqrec.models.hstu import HSTUConfig
from linseqrec.models.weights import load_parameters, parameter_arrays
from tests.models.reference import run, silu

CONFIG = HSTUConfig(width=12, heads=3, num_layers=2, max_length=20)
ITEMS = np.random.default_rng(0).integers(1, 31, 17)
# Within the second, seconds, minutes, months.
TIMES = np.cumsum(np.random.default_rng(1).choice([0, 7, 500, 90_000, 8_000_000], 17))
ASKED = np.append(TIMES[1:], TIMES[-1] + 4_000)


def normed(x, epsilon=1e-6):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)


def equations(p, items, times, asked, config):
    """One history at a time, a loop over heads and pairs of events."""
    x = p["embedding/table"][items] * np.sqrt(config.width) + p["positions/table"][: len(items)]
    size = config.width // config.heads
    for layer in range(config.num_layers):
        block = f"blocks/{layer}"
        gate, value, query, key = np.split(silu(normed(x) @ p[f"{block}/project/kernel"]), 4, -1)
        read = np.zeros_like(x)
        for head in range(config.heads):
            own = slice(head * size, (head + 1) * size)
            for t in range(len(items)):
                for s in range(t + 1):
                    score = query[t, own] @ key[s, own] + p[f"{block}/position_bias"][t - s]
                    if config.time_bias:
                        bucket = int(np.log(max(abs(asked[t] - times[s]), 1)) / 0.301)
                        score += p[f"{block}/time_bias"][bucket]
                    read[t, own] += silu(score) / config.max_length * value[s, own]
        mixed = gate * normed(read)
        x = x + mixed @ p[f"{block}/output/kernel"] + p[f"{block}/output/bias"]
    if config.temperature is None:
        return normed(x) * p["norm/scale"] + p["norm/bias"]
    return x / np.linalg.norm(x, axis=-1, keepdims=True) / config.temperature


def build(config, scale=0.3, **options):
    """A model whose parameters all matter, but for the layer of request times; its arrays."""
    model = config.build(30, rngs=nnx.Rngs(0), **options)
    rng = np.random.default_rng(2)
    arrays = {}
    for name, array in parameter_arrays(model).items():
        wide = 0 if name.startswith("request_time") else scale
        arrays[name] = (array + wide * rng.normal(size=array.shape)).astype(np.float32)
    load_parameters(model, arrays)
    return model, {name: array.astype(np.float64) for name, array in arrays.items()}


def row(items=ITEMS, times=TIMES, asked=None):
    fields = [np.asarray(field, np.int32)[None] for field in (items, times)]
    slots = np.arange(len(items), dtype=np.int32)[None]
    asked = None if asked is None else np.asarray(asked, np.int32)[None]
    return Events(*fields, np.ones_like(slots), slots, asked)


@pytest.mark.parametrize("change", [{}, {"time_bias": False}, {"temperature": 0.5}])
def test_the_hidden_states_are_the_equations(change):
    config = dataclasses.replace(CONFIG, **change)
    model, arrays = build(config)
    hidden = np.asarray(run(model, row()).hidden)[0]
    np.testing.assert_allclose(hidden, equations(arrays, ITEMS, TIMES, TIMES, config), atol=3e-5)


def test_a_known_request_is_the_time_of_its_query():
    model, arrays = build(CONFIG, request_time=True)
    hidden = np.asarray(run(model, row(asked=ASKED)).hidden)[0]
    np.testing.assert_allclose(hidden, equations(arrays, ITEMS, TIMES, ASKED, CONFIG), atol=3e-5)


def test_scores_with_a_temperature_are_cosines_over_it():
    model, arrays = build(dataclasses.replace(CONFIG, temperature=0.05))
    table = np.asarray(model.item_table())
    np.testing.assert_allclose(np.linalg.norm(table, axis=1), 1, atol=1e-6)
    lengths = np.linalg.norm(arrays["embedding/table"], axis=1, keepdims=True)
    np.testing.assert_allclose(table, arrays["embedding/table"] / lengths, atol=1e-6)
    hidden = np.asarray(run(model, row()).hidden)[0]
    np.testing.assert_allclose(np.linalg.norm(hidden, axis=1), 20, rtol=1e-6)
    assert not any(name.startswith("norm/") for name in arrays)


def test_bfloat16_stays_near():
    model, arrays = build(dataclasses.replace(CONFIG, dtype="bfloat16"), scale=0.1)
    hidden = np.asarray(run(model, row()).hidden, np.float64)[0]
    expected = equations(arrays, ITEMS, TIMES, TIMES, CONFIG)
    assert np.sqrt(np.mean((hidden - expected) ** 2) / np.mean(expected**2)) < 2e-2


def test_the_names_are_the_documented_ones():
    model, _ = build(dataclasses.replace(CONFIG, num_layers=1))
    assert {name: array.shape for name, array in parameter_arrays(model).items()} == {
        "embedding/table": (31, 12),
        "positions/table": (20, 12),
        "blocks/0/project/kernel": (12, 48),
        "blocks/0/position_bias": (20,),
        "blocks/0/time_bias": (129,),
        "blocks/0/output/kernel": (12, 12),
        "blocks/0/output/bias": (12,),
        "norm/scale": (12,),
        "norm/bias": (12,),
    }


def test_what_it_cannot_serve_is_refused():
    model, _ = build(CONFIG)
    with pytest.raises(ValueError, match="rows of 21 slots, but only 20 positions were learned"):
        model(row(np.ones(21), np.arange(21)))
    with pytest.raises(ValueError, match="carries no state"):
        model(row(), state=())
    with pytest.raises(ValueError, match="width 64 must be a multiple of heads 3"):
        HSTUConfig(heads=3)
    with pytest.raises(ValueError, match=r"temperature is 0\.0: it must be above 0, or none"):
        HSTUConfig(temperature=0.0)
    assert CONFIG.longest_row == 20 and CONFIG.reads_timestamps == ["time_bias=True"]
    assert dataclasses.replace(CONFIG, time_bias=False).reads_timestamps == []
