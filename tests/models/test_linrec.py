"""LinRec against its equations in float64."""

import numpy as np
import pytest

from linseqrec.config_fields import ConfigError
from linseqrec.models.linrec import LinRecConfig
from tests.models.reference import (
    ITEMS,
    assert_bfloat16_stays_near,
    assert_hidden_states,
    dense,
    gelu,
    layer_norm,
    make_events,
    random_model,
)

CONFIG = LinRecConfig(width=12, heads=3, num_layers=2, max_length=20)


def elu(x):
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def whole_window(query, key, value):
    """The attention of a whole window, one head: lengths of queries' rows and keys' columns."""
    events, width = query.shape
    query, key = elu(query), elu(key)
    query = query / np.sqrt(width) / np.linalg.norm(query, axis=1, keepdims=True)
    key = key / np.sqrt(events) / np.linalg.norm(key, axis=0, keepdims=True)
    return query @ (key.T @ value)


def attention(x, p, name, config):
    """Each event reads a window that ends with it."""
    query, key, value = np.split(dense(p, f"{name}/query_key_value", x), 3, axis=1)
    output = np.zeros_like(x)
    for head in np.split(np.arange(config.width), config.heads):
        for t in range(len(x)):
            window = (part[: t + 1, head] for part in (query, key, value))
            output[t, head] = whole_window(*window)[-1]
    return dense(p, f"{name}/output", output)


def equations(p, items, config):
    x = p["embedding/table"][items] + p["positions/table"][: len(items)]
    x = layer_norm(p, "norm", x, 1e-12)
    for layer in range(config.num_layers):
        block = f"blocks/{layer}"
        x = x + attention(x, p, f"{block}/attention", config)
        x = layer_norm(p, f"{block}/attention_norm", x, 1e-12)
        hidden = gelu(dense(p, f"{block}/feed_forward/expand", x))
        fed = dense(p, f"{block}/feed_forward/contract", hidden)
        x = layer_norm(p, f"{block}/feed_forward_norm", x + fed, 1e-12)
    return x


def test_the_hidden_states_are_the_equations():
    assert_hidden_states(CONFIG, equations)


def test_bfloat16_stays_near():
    assert_bfloat16_stays_near(CONFIG, equations)


def test_what_it_cannot_serve_is_refused():
    model, _ = random_model(CONFIG)
    assert CONFIG.longest_row == 20
    with pytest.raises(ValueError, match="rows of 21 slots, but only 20 positions were learned"):
        model(make_events([[ITEMS]], 21))
    with pytest.raises(ConfigError, match="width 64 must be a multiple of heads 3"):
        LinRecConfig(heads=3)
