"""FLOPs by the weights, against what the dense layers are in fact given."""

import dataclasses

import jax
import pytest
from flax import nnx

from linseqrec.models.gated_deltanet import GatedDeltaNetConfig
from linseqrec.models.hytrec import HyTRecConfig
from linseqrec.models.sinkrec import SinkRecConfig
from linseqrec.training.throughput import flops_per_event
from tests.models.reference import make_events, random_histories

# Slots among the keys meet their kernel in the attention, and not in a dense layer's call.
SINKREC = SinkRecConfig(width=8, heads=2, loops=3, memory_key_values=False, codes=4)
MODELS = {
    "gated deltanet": GatedDeltaNetConfig(width=8, heads=2, num_layers=2),
    "hytrec": HyTRecConfig(width=8, heads=2, num_layers=2, ratio="1:1"),
    "sinkrec": SINKREC,
    "sinkrec, blocks of their own": dataclasses.replace(SINKREC, shared=False),
}


@pytest.mark.parametrize("name", MODELS)
def test_an_event_costs_what_the_dense_layers_multiply(name, monkeypatch):
    config, products = MODELS[name], []
    call = nnx.Linear.__call__

    def counted(layer, inputs, *args, **more):
        products.append(layer.kernel.size * inputs.size // inputs.shape[-1])
        return call(layer, inputs, *args, **more)

    events = make_events([random_histories([16])], 16)
    graphdef, params, rest = nnx.split(config.build(20, rngs=nnx.Rngs(0)), nnx.Param, ...)
    monkeypatch.setattr(nnx.Linear, "__call__", counted)
    jax.eval_shape(lambda: nnx.merge(graphdef, params, rest)(events).hidden)
    assert flops_per_event(params, config) == 6 * sum(products) / 16
