"""Parameters by name: out of a model, and into one."""

import numpy as np
import pytest
from flax import nnx

from linseqrec.models.recgrela import RecGRELAConfig
from linseqrec.models.weights import load_parameters, parameter_arrays

CONFIG = RecGRELAConfig(width=8, heads=2, num_layers=1)
GATE = "blocks/0/attention/gate/kernel"


@pytest.fixture
def model():
    return CONFIG.build(5, rngs=nnx.Rngs(0))


def test_the_names_are_the_documented_ones(model):
    in_a_block = {
        "attention_norm/scale": (8,),
        "attention_norm/bias": (8,),
        "attention/gate/kernel": (8, 8),
        "attention/gate/bias": (8,),
        "attention/input_gate/kernel": (8, 8),
        "attention/input_gate/bias": (8,),
        "attention/query_key/kernel": (8, 16),
        "attention/query_key/bias": (16,),
        "attention/shortcut/weight": (4, 8),
        "attention/shortcut/bias": (8,),
        "attention/output/kernel": (8, 8),
        "attention/output/bias": (8,),
        "feed_forward_norm/scale": (8,),
        "feed_forward_norm/bias": (8,),
        "feed_forward/expand/kernel": (8, 32),
        "feed_forward/expand/bias": (32,),
        "feed_forward/contract/kernel": (32, 8),
        "feed_forward/contract/bias": (8,),
    }
    assert {name: array.shape for name, array in parameter_arrays(model).items()} == {
        "embedding/table": (6, 8),
        "norm/scale": (8,),
        "norm/bias": (8,),
    } | {f"blocks/0/{name}": shape for name, shape in in_a_block.items()}


def test_what_is_loaded_is_what_is_there(model):
    arrays = {
        name: np.arange(array.size, dtype=np.float64).reshape(array.shape) + index
        for index, (name, array) in enumerate(parameter_arrays(model).items())
    }
    load_parameters(model, arrays)
    for name, array in parameter_arrays(model).items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, arrays[name], err_msg=name)
    np.testing.assert_array_equal(model.item_table(), arrays["embedding/table"])
    np.testing.assert_array_equal(model.blocks[0].attention.gate.kernel[...], arrays[GATE])


def test_arrays_are_copies(model):
    parameter_arrays(model)[GATE][:] = 7
    assert np.abs(parameter_arrays(model)[GATE]).max() < 1


def test_arrays_that_do_not_fit_are_named_and_change_nothing(model):
    before = parameter_arrays(model)
    arrays = {name: array + 1 for name, array in before.items()}
    arrays["blocks/0/atention/gate/kernel"] = arrays.pop(GATE)
    arrays["feed_forward.expand.weight" * 3] = np.zeros(3)
    arrays["embedding/table"] = arrays["embedding/table"].T
    with pytest.raises(ValueError) as error:
        load_parameters(model, arrays)
    assert str(error.value).splitlines() == [
        "the arrays do not fit RecGRELA:",
        f"  missing: {GATE} (8, 8)",
        "  wrong shape: embedding/table is (8, 6), want (6, 8)",
        f"  unknown: blocks/0/atention/gate/kernel; did you mean {GATE}?",
        f"  unknown: {'feed_forward.expand.weight' * 3}",
    ]
    for name, array in parameter_arrays(model).items():
        np.testing.assert_array_equal(array, before[name])
