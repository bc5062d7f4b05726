"""What must be float32 on every device is not left to an accelerator's rounding."""

import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from linseqrec.layers.standard import GateLogits
from linseqrec.models.gated_deltanet import GatedDeltaNetConfig
from linseqrec.models.own_items import OwnItems
from tests.models.reference import make_events, random_histories


def precisions(function, *arguments):
    """The precision of each product of float32 numbers in a program for CUDA."""
    text = jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    products = [line for line in text.splitlines() if "dot_general " in line and "xf32>" in line]
    return [
        match[1] if (match := re.search(r"precision = \[(\w+), \w+\]", line)) else "DEFAULT"
        for line in products
    ]


def test_the_logits_of_gates():
    gate = GateLogits(8, 2, rngs=nnx.Rngs(0))
    assert precisions(gate, jnp.ones((2, 3, 8), jnp.bfloat16)) == ["HIGHEST"]


def test_the_means_of_own_items():
    """All products of the model around it are of bfloat16 numbers, or of its gates."""
    config = GatedDeltaNetConfig(
        width=8, heads=1, num_layers=1, key_width=8, value_width=8, dtype="bfloat16"
    )
    model = OwnItems(config.build(20, rngs=nnx.Rngs(0)))
    events = jax.tree.map(np.asarray, make_events([random_histories([16])], 16))
    found = precisions(lambda events: model(events).hidden, events)
    assert found and "DEFAULT" not in found
