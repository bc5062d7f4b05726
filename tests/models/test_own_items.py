"""Scores in favour of the history's items: against loops over events, and as they start."""

import numpy as np
import pytest
from flax import nnx

from linseqrec.models.linrec import LinRecConfig
from linseqrec.models.lrurec import LRURecConfig
from linseqrec.models.own_items import OwnItems
from linseqrec.models.weights import parameter_arrays
from tests.models.reference import make_events, random_histories, random_model, run
from tests.own_configs import OwnItemsConfig

INNER = LRURecConfig(width=8, num_layers=1)


def test_hidden_vectors_are_the_models_with_the_means_added():
    model, arrays = random_model(OwnItemsConfig(INNER))
    history = random_histories([40])[0]
    events = make_events([[history]], 40)
    added = run(model, events).hidden[0] - run(model.model, events).hidden[0]
    table = np.float64(arrays["model/embedding/table"])
    for t in range(40):
        expected = 0
        for half_life, gain in zip((8, 64, 512), np.float64(arrays["gain"]), strict=True):
            weights = 0.5 ** ((t - np.arange(t + 1)) / half_life)
            expected = expected + gain * (weights @ table[history[: t + 1]]) / weights.sum()
        np.testing.assert_allclose(added[t], expected, atol=2e-5)


def test_a_fresh_model_favours_what_the_history_repeats():
    """On average: five favourites of eight events each, then what occurred once, then the rest."""
    model = OwnItems(LRURecConfig(width=64).build(2_000, rngs=nnx.Rngs(0)))
    draw = np.random.default_rng(0)
    items = np.stack([draw.permutation(2_000)[:45] + 1 for _ in range(8)])
    histories = [
        draw.permutation(np.concatenate([np.repeat(row[:5], 8), row[5:]])) for row in items
    ]
    hidden = run(model, make_events([[history.tolist()] for history in histories], 80)).hidden
    scores = np.array(hidden[:, -1] @ model.item_table().T)
    of_history = np.take_along_axis(scores, items, axis=1)
    favourites, once = of_history[:, :5].mean(), of_history[:, 5:].mean()
    # The most that an item can have is about D, whatever the scale of the table; here it is a tenth
    # of the history, and a hundredth.
    assert 5 < favourites < 8
    assert 0.5 < once < 1
    assert abs(scores.mean()) < 0.1


@pytest.mark.parametrize("config", [LRURecConfig, LinRecConfig], ids=["lrurec", "linrec"])
def test_table_deviation_changes_the_item_vectors_alone(config):
    """LRURec cuts its normal draws at two deviations, which leaves .88 of the deviation."""
    released, unit = (
        parameter_arrays(config(**fields).build(2_000, rngs=nnx.Rngs(0)))
        for fields in ({}, {"table_deviation": 0.125})
    )
    assert 0.1 < unit.pop("embedding/table").std() < 0.13
    assert 0.017 < released.pop("embedding/table").std() < 0.021
    for name, value in released.items():
        np.testing.assert_array_equal(unit[name], value, err_msg=name)
