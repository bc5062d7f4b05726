"""The rivals that carry a state: a history in parts is the history as a whole."""

import jax
import numpy as np
import pytest

from linseqrec.models.gru4rec import GRU4RecConfig
from linseqrec.models.linrec import LinRecConfig
from linseqrec.models.lrurec import LRURecConfig
from linseqrec.models.mamba2 import Mamba2Config
from tests.models.reference import (
    assert_states_equal,
    make_events,
    random_histories,
    random_model,
    run,
)
from tests.own_configs import OwnItemsConfig

MODELS = {
    "mamba2": Mamba2Config(
        width=12, heads=3, num_layers=2, key_width=5, value_width=7, chunk_size=4
    ),
    "lrurec": LRURecConfig(width=6, num_layers=2),
    "gru4rec": GRU4RecConfig(width=6, num_layers=2),
    "linrec": LinRecConfig(width=12, heads=3, num_layers=2, max_length=20),
}
MODELS["lrurec, own items"] = OwnItemsConfig(MODELS["lrurec"])


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return random_model(MODELS[request.param])[0]


def test_event_by_event_equals_the_whole_row(model):
    """Rows end at different times: what comes after its last event leaves a row's state alone."""
    lengths = [20, 7, 1, 0]
    events = make_events([[history] for history in random_histories(lengths)], 20)
    whole = run(model, events)
    state, hidden = None, []
    for t in range(20):
        encoding = run(model, jax.tree.map(lambda x, t=t: x[:, t : t + 1], events), state)
        state = encoding.state
        hidden.append(encoding.hidden)
    real = events.items > 0
    hidden = np.concatenate(hidden, axis=1)
    np.testing.assert_allclose(hidden[real], whole.hidden[real], atol=2e-5, rtol=1e-5)
    assert_states_equal(state, whole.state)


def test_a_row_may_be_split_anywhere(model):
    """Before and after a split the parts are padded, each on its own side."""
    histories = random_histories([12, 10, 11, 17])
    whole = run(model, make_events([[h] for h in histories], 20))
    for split in (0, 1, 5, 10):
        first = run(model, make_events([[h[:split]] for h in histories], 20))
        tails = make_events([[h[split:]] for h in histories], 20, start=3, goes_on_from=[split] * 4)
        second = run(model, tails, first.state)
        for row, history in enumerate(histories):
            rest = len(history) - split
            parts = [first.hidden[row, :split], second.hidden[row, 3 : 3 + rest]]
            np.testing.assert_allclose(
                np.concatenate(parts), whole.hidden[row, : len(history)], atol=2e-5, rtol=1e-5
            )
        assert_states_equal(second.state, whole.state)


def test_the_state_goes_on_into_the_first_history_of_a_row_only(model):
    first, second = random_histories([9, 6])
    alone = run(model, make_events([[first], [second]], 20))
    past = run(model, make_events([[first[:4]], []], 20)).state
    rows = [[first[4:], second], [second]]
    packed = run(model, make_events(rows, 20, goes_on_from=[4, 0]), past)
    np.testing.assert_allclose(packed.hidden[0, :5], alone.hidden[0, 4:9], atol=2e-5, rtol=1e-5)
    np.testing.assert_allclose(packed.hidden[0, 5:11], alone.hidden[1, :6], atol=2e-5, rtol=1e-5)
    assert_states_equal(packed.state, jax.tree.map(lambda x: x[np.array([1, 1])], alone.state))
