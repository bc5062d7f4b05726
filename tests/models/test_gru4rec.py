"""GRU4Rec against its equations in float64."""

import numpy as np
import pytest
from flax import nnx

from linseqrec.models.gru4rec import GRU4RecConfig
from linseqrec.models.weights import parameter_arrays
from tests.models.reference import assert_bfloat16_stays_near, assert_hidden_states, dense, sigmoid

CONFIG = GRU4RecConfig(width=6, num_layers=2)


def equations(p, items, config):
    x = p["embedding/table"][items]
    for layer in range(config.num_layers):
        state, states = np.zeros(config.width), []
        for row in x:
            of_input = np.split(dense(p, f"layers/{layer}/input", row), 3)
            of_state = np.split(dense(p, f"layers/{layer}/recurrent", state), 3)
            reset, update = (sigmoid(of_input[i] + of_state[i]) for i in (0, 1))
            new = np.tanh(of_input[2] + reset * of_state[2])
            state = (1 - update) * new + update * state
            states.append(state)
        x = np.array(states)
    return x


def test_the_hidden_states_are_the_equations():
    assert_hidden_states(CONFIG, equations, atol=2e-6)


def test_bfloat16_stays_near():
    assert_bfloat16_stays_near(CONFIG, equations)


def test_the_gates_start_as_released():
    arrays = parameter_arrays(GRU4RecConfig(width=32).build(400, rngs=nnx.Rngs(0)))
    # A square kernel a gate, whatever stands beside it.
    for name, bound in {
        "layers/0/input/kernel": (6 / 64) ** 0.5,
        "layers/0/recurrent/kernel": (6 / 64) ** 0.5,
    }.items():
        assert np.abs(arrays[name]).max() == pytest.approx(bound, rel=1e-2)
        assert arrays[name].std() == pytest.approx(bound / 3**0.5, rel=5e-2)
    assert not arrays["layers/0/input/bias"].any()


@pytest.mark.parametrize("num_items", [400, 4_000])
def test_fresh_item_vectors_are_of_one_size_in_any_catalogue(num_items):
    """The authors' shrink as catalogues grow, to where Adam hardly trains them."""
    table = parameter_arrays(GRU4RecConfig(width=32).build(num_items, rngs=nnx.Rngs(0)))
    assert table["embedding/table"].std() == pytest.approx(32**-0.5, rel=2e-2)
