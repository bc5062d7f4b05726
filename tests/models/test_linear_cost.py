"""No array of a linear model grows faster than the history, in reading it or in training on it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linseqrec.events import Events
from linseqrec.models.fuxi_linear import FuXiLinearConfig
from linseqrec.models.gated_deltanet import GatedDeltaNetConfig
from linseqrec.models.gru4rec import GRU4RecConfig
from linseqrec.models.hytrec import HyTRecConfig
from linseqrec.models.linrec import LinRecConfig
from linseqrec.models.lrurec import LRURecConfig
from linseqrec.models.mamba2 import Mamba2Config
from linseqrec.models.recgrela import RecGRELAConfig
from linseqrec.models.sinkrec import SinkRecConfig
from tests.models.reference import abstract_model

DELAYED = HyTRecConfig(
    width=8, heads=2, num_layers=2, ratio="1:1", attention_window=64, question="delayed"
)
LINEAR = {
    "gated deltanet": GatedDeltaNetConfig(width=8, heads=2, num_layers=2),
    "fuxi linear": FuXiLinearConfig(
        width=8, heads=2, num_layers=2, periods=2, position_width=8, max_length=4_096
    ),
    "recgrela": RecGRELAConfig(width=8, heads=2, num_layers=1),
    "recgrela released": RecGRELAConfig(width=8, heads=2, num_layers=1, causal=False),
    "hytrec": DELAYED,
    "hytrec timed": dataclasses.replace(DELAYED, timed_attention=True),
    "hytrec asked by the present": dataclasses.replace(DELAYED, question="present"),
    "hytrec asked by the short branch": dataclasses.replace(DELAYED, question="short"),
    "sinkrec": SinkRecConfig(width=8, heads=2, loops=1, codes=16, attention_window=64),
    "mamba2": Mamba2Config(width=8, heads=2, num_layers=2, key_width=8, value_width=8),
    "lrurec": LRURecConfig(width=8),
    "gru4rec": GRU4RecConfig(width=8),
    "linrec": LinRecConfig(width=8, heads=2, max_length=4_096),
}


def largest_array(config, length):
    """Elements of the largest array between a history of this length and its gradient."""
    graphdef, params, rest = nnx.split(abstract_model(config), nnx.Param, ...)

    def loss(params, row):
        events = Events(items=row, timestamps=row, segment_ids=row, positions=row)
        return jnp.sum(nnx.merge(graphdef, params, rest)(events).hidden)

    row = jax.ShapeDtypeStruct((1, length), jnp.int32)
    return max(sizes(jax.make_jaxpr(jax.grad(loss))(params, row).jaxpr))


def sizes(jaxpr):
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            yield int(np.prod(variable.aval.shape))
        for value in jax.tree.leaves(equation.params, is_leaf=is_program):
            if is_program(value):
                yield from sizes(getattr(value, "jaxpr", value))


def is_program(value):
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


@pytest.mark.parametrize("name", LINEAR)
def test_arrays_grow_as_the_history_does(name):
    short, long = (largest_array(LINEAR[name], length) for length in (1_024, 4_096))
    assert long <= 4.2 * short


def test_the_measure_sees_a_quadratic_array_within_a_loop_and_its_gradient():
    @jax.checkpoint
    def scores(x):
        return jax.lax.map(lambda shift: jnp.sum(jnp.tanh(x[:, None] - x + shift)), jnp.arange(3.0))

    traced = jax.make_jaxpr(jax.jit(jax.grad(lambda x: scores(x).sum())))(jnp.zeros(100))
    assert max(sizes(traced.jaxpr)) >= 100**2
