"""FuXi-Linear against its equations in float64, and its stream against the whole."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from linseqrec.events import Events
from linseqrec.models.fuxi_linear import FuXiLinearConfig
from linseqrec.models.weights import parameter_arrays
from tests.models.reference import (
    assert_states_equal,
    make_events,
    random_histories,
    run,
    sigmoid,
    silu,
)
from tests.models.test_hstu import ASKED, ITEMS, TIMES, build, normed

CONFIG = FuXiLinearConfig(
    width=12,
    heads=2,
    num_layers=2,
    periods=3,
    first_period=60,
    period_ratio=1000,
    position_width=6,
    feed_forward=2,
    max_length=20,
    chunk_size=4,
)


def retention(p, block, query, key, value, heads):
    rates = np.exp(-np.cumsum(np.log1p(np.exp(p[f"{block}/retention/rate"]))))
    read, size = np.zeros_like(value), value.shape[1] // heads
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        for t in range(len(value)):
            for s in range(t + 1):
                left = np.exp(-rates[head]) ** (t - s + 1)
                read[t, own] += left * (query[t, own] @ key[s, own]) * value[s, own]
    return read


def temporal(p, block, x, times, asked, config):
    value = x @ p[f"{block}/temporal/value/kernel"]
    read, size = np.zeros_like(value), value.shape[1] // (2 * config.periods)
    gamma = sigmoid(p["phases/fading"])
    for head in range(2 * config.periods):
        own, period = slice(head * size, (head + 1) * size), head % config.periods
        rate = 2 * np.pi / (config.first_period * config.period_ratio**period)
        wave = np.sin if head < config.periods else np.cos
        past, current = p[f"{block}/temporal/past"][head], p[f"{block}/temporal/current"][head]
        for t in range(len(x)):
            for s in range(t + 1):
                turn = rate * (asked[t] - times[s])
                read[t, own] += past * gamma[period] ** turn * wave(turn) * value[s, own]
            read[t, own] += current * value[t, own]
    return read


def positional(p, block, x):
    value, table = x @ p[f"{block}/positional/value/kernel"], p[f"{block}/positional/table"]
    past, current = p[f"{block}/positional/past"], p[f"{block}/positional/current"]
    read = current * value
    for t in range(len(x)):
        for s in range(t + 1):
            read[t] += past * (table[t] @ table[s]) / (table.shape[1] // 2) * value[s]
    return read


def equations(p, items, times, asked, config):
    """One history at a time, a loop over heads and pairs of events."""
    x = p["embedding/table"][items] * np.sqrt(config.width) + p["positions/table"][: len(items)]
    channels, width = 1 + config.temporal + config.positional, config.width
    for layer in range(config.num_layers):
        block, h = f"blocks/{layer}", normed(x)
        projected = silu(h @ p[f"{block}/project/kernel"])
        gate, rest = projected[:, : channels * width], projected[:, channels * width :]
        reads = [retention(p, block, *np.split(rest, 3, axis=1), config.heads)]
        if config.temporal:
            reads.append(temporal(p, block, h, times, asked, config))
        if config.positional:
            reads.append(positional(p, block, h))
        mixed = gate * np.concatenate([normed(read) for read in reads], axis=1)
        x = x + mixed @ p[f"{block}/output/kernel"]
        inner = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)
        one, two = np.split(inner @ p[f"{block}/feed_forward/expand/kernel"], 2, axis=1)
        x = x + (silu(one) * two) @ p[f"{block}/feed_forward/contract/kernel"]
    if config.temperature is None:
        return normed(x) * p["norm/scale"] + p["norm/bias"]
    return x / np.linalg.norm(x, axis=-1, keepdims=True) / config.temperature


def row(start=0, stop=17, asked=None):
    fields = [np.asarray(field[start:stop], np.int32)[None] for field in (ITEMS, TIMES)]
    slots = np.arange(start, stop, dtype=np.int32)[None]
    asked = None if asked is None else np.asarray(asked[start:stop], np.int32)[None]
    return Events(*fields, np.ones_like(slots), slots, asked)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"temporal": False},
        {"positional": False},
        {"temporal": False, "positional": False},
        {"temperature": 0.5},
    ],
)
def test_the_hidden_states_are_the_equations(change):
    config = dataclasses.replace(CONFIG, **change)
    model, arrays = build(config)
    hidden = np.asarray(run(model, row()).hidden)[0]
    np.testing.assert_allclose(hidden, equations(arrays, ITEMS, TIMES, TIMES, config), atol=5e-5)


def test_a_known_request_is_the_time_of_its_query():
    model, arrays = build(CONFIG, request_time=True)
    hidden = np.asarray(run(model, row(asked=ASKED)).hidden)[0]
    np.testing.assert_allclose(hidden, equations(arrays, ITEMS, TIMES, ASKED, CONFIG), atol=5e-5)


@pytest.mark.parametrize("asked", [None, ASKED], ids=["hidden", "known"])
def test_a_history_in_parts_equals_the_whole(asked):
    """Event by event, and in parts of any size."""
    model, _ = build(CONFIG, request_time=asked is not None)
    whole = run(model, row(asked=asked))
    for cuts in (range(18), (0, 1, 9, 17)):
        state, parts = None, []
        for start, stop in zip(list(cuts)[:-1], list(cuts)[1:], strict=True):
            encoding = run(model, row(start, stop, asked), state)
            state = encoding.state
            parts.append(encoding.hidden)
        np.testing.assert_allclose(np.concatenate(parts, axis=1), whole.hidden, atol=5e-5)
        for got, wanted in zip(*map(jax.tree.leaves, (state, whole.state)), strict=True):
            np.testing.assert_allclose(got, wanted, atol=5e-5)


def test_the_state_goes_on_into_the_first_history_of_a_row_only():
    """Whatever padding stands before it, and whatever is packed behind."""
    model, _ = build(CONFIG)
    first, second = random_histories([9, 6], num_items=30)
    alone = run(model, make_events([[first], [second]], 20))
    past = run(model, make_events([[first[:4]], []], 20)).state
    rows = [[first[4:], second], [second]]
    packed = run(model, make_events(rows, 20, start=2, gap=1, goes_on_from=[4, 0]), past)
    np.testing.assert_allclose(packed.hidden[0, 2:7], alone.hidden[0, 4:9], atol=5e-5)
    np.testing.assert_allclose(packed.hidden[0, 8:14], alone.hidden[1, :6], atol=5e-5)
    assert_states_equal(packed.state, jax.tree.map(lambda x: x[np.array([1, 1])], alone.state))


def test_a_position_past_the_learned_ones_is_no_number():
    model, _ = build(CONFIG)
    state = run(model, row()).state
    event = dataclasses.replace(row(16, 17), positions=np.array([[20]], np.int32))
    assert np.all(np.isnan(run(model, event, state).hidden))


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
        "phases/fading": (3,),
        "blocks/0/project/kernel": (12, 72),
        "blocks/0/retention/rate": (2,),
        "blocks/0/temporal/value/kernel": (12, 12),
        "blocks/0/temporal/past": (6,),
        "blocks/0/temporal/current": (6,),
        "blocks/0/positional/value/kernel": (12, 12),
        "blocks/0/positional/past": (1,),
        "blocks/0/positional/current": (1,),
        "blocks/0/positional/table": (20, 6),
        "blocks/0/output/kernel": (36, 12),
        "blocks/0/feed_forward/expand/kernel": (12, 48),
        "blocks/0/feed_forward/contract/kernel": (24, 12),
        "norm/scale": (12,),
        "norm/bias": (12,),
    }


def test_fresh_retention_forgets_by_halves():
    """Head h loses e^(-1/2^h) an event, so that a slower head follows each."""
    model = FuXiLinearConfig(heads=4).build(3, rngs=nnx.Rngs(0))
    rate = model.blocks[0].retention.rate[...]
    lost = np.exp(-np.cumsum(np.log1p(np.exp(np.asarray(rate)))))
    np.testing.assert_allclose(lost, [1 / 2, 1 / 4, 1 / 8, 1 / 16], rtol=0.1)


def test_what_cannot_be_is_refused():
    model, _ = build(CONFIG)
    longer = Events(*np.ones((4, 1, 21), np.int32))
    with pytest.raises(ValueError, match="rows of 21 slots, but only 20 positions were learned"):
        model(longer)
    for change, message in (
        (dict(heads=3), "width 64 must be a multiple of heads 3"),
        (dict(periods=5), "width 64 must be a multiple of twice the periods 5"),
        (dict(first_period=1025), "the longest period, .*, is 2149580800 seconds: .* 2147483648"),
        (dict(position_width=5), "position_width is 5: it must be even"),
        (dict(temperature=-1.0), r"temperature is -1\.0: it must be above 0, or none"),
        (dict(chunk_size=0), "chunk_size is 0: it must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            FuXiLinearConfig(**change)
    assert FuXiLinearConfig(periods=5, temporal=False).reads_timestamps == []
    assert CONFIG.reads_timestamps == ["temporal=True"] and CONFIG.longest_row == 20
