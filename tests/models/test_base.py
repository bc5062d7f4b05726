"""What every model answers: states before any event, and the defaults of a user's own model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linseqrec.analysis.traces import trace
from linseqrec.layers.standard import ItemEmbedding
from linseqrec.models.base import Encoding, ModelConfig, NoState, SequenceModel
from linseqrec.models.fuxi_linear import FuXiLinearConfig
from linseqrec.models.gated_deltanet import GatedDeltaNetConfig
from linseqrec.models.gru4rec import GRU4RecConfig
from linseqrec.models.hstu import HSTUConfig
from linseqrec.models.hytrec import HyTRecConfig
from linseqrec.models.linrec import LinRecConfig
from linseqrec.models.lrurec import LRURecConfig
from linseqrec.models.mamba2 import Mamba2Config
from linseqrec.models.recgrela import RecGRELAConfig
from linseqrec.models.sasrec import SASRecConfig
from linseqrec.models.sinkrec import SinkRecConfig
from tests.models.reference import make_events, random_histories, random_model, run
from tests.own_configs import OwnItemsConfig

HYTREC = HyTRecConfig(
    width=8, heads=1, short_events=3, short_layers=1, num_layers=2, ratio="1:1", attention_window=4
)
SINKREC = SinkRecConfig(
    width=8, heads=1, key_width=4, value_width=4, loops=2, dilations=(1, 2), levels=1, codes=4
)
CARRYING = {
    "gated deltanet": GatedDeltaNetConfig(width=8, num_layers=1, key_width=4, value_width=4),
    "fuxi linear": FuXiLinearConfig(width=8, heads=1, num_layers=1, periods=2, max_length=9),
    "recgrela": RecGRELAConfig(width=8, heads=1, num_layers=1),
    "recgrela lookup": RecGRELAConfig(
        width=8, heads=1, num_layers=1, positions="none", lookup=True, shortcut=False
    ),
    "hytrec": HYTREC,
    "hytrec delayed, timed": dataclasses.replace(HYTREC, question="delayed", timed_attention=True),
    "hytrec asked by the short branch": dataclasses.replace(HYTREC, question="short", gate="none"),
    "sinkrec": SINKREC,
    "sinkrec bare": dataclasses.replace(
        SINKREC, memory=False, attention_convolution=False, temporal_addressing=False
    ),
    "mamba2": Mamba2Config(width=8, heads=1, num_layers=1, key_width=4, value_width=4),
    "lrurec": LRURecConfig(width=8, num_layers=1),
    "gru4rec": GRU4RecConfig(width=8),
    "linrec": LinRecConfig(width=8, heads=2, num_layers=1, max_length=9),
}
WHOLE_ROWS = {
    "sasrec": SASRecConfig(width=8, num_layers=1, max_length=9),
    "hstu": HSTUConfig(width=8, num_layers=1, max_length=9),
    "recgrela released": RecGRELAConfig(width=8, heads=1, num_layers=1, causal=False),
    "hytrec shuffled": dataclasses.replace(HYTREC, time="shuffled"),
}
CARRYING["lrurec, own items"] = OwnItemsConfig(model=CARRYING["lrurec"])
WHOLE_ROWS["sasrec, own items"] = OwnItemsConfig(model=WHOLE_ROWS["sasrec"])
EVENTS = make_events([random_histories([9])[0:1], [random_histories([5], seed=1)[0]]], 9)


def kinds(state):
    leaves, structure = jax.tree.flatten(state)
    return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]


@pytest.mark.parametrize("name", CARRYING)
def test_the_initial_state_is_of_the_kind_that_is_carried_and_is_no_past(name):
    model, _ = random_model(CARRYING[name])
    assert model.carries_state
    initial = model.initial_state(2)
    without = run(model, EVENTS)
    assert kinds(without.state) == kinds(initial)
    # As an argument of the program its zeros are not known to be zeros.
    given = run(model, EVENTS, initial)
    real = EVENTS.items > 0
    np.testing.assert_allclose(given.hidden[real], without.hidden[real], atol=1e-5)
    for one, other in zip(*map(jax.tree.leaves, (given.state, without.state)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("name", WHOLE_ROWS)
def test_a_model_without_a_state_says_so(name):
    model, _ = random_model(WHOLE_ROWS[name])
    assert not model.carries_state
    encoding = run(model, EVENTS)
    assert encoding.state == NoState()
    again = run(model, EVENTS, encoding.state)
    np.testing.assert_array_equal(again.hidden, encoding.hidden)
    with pytest.raises(ValueError, match="reads whole rows: it carries no state"):
        model(EVENTS, jnp.zeros(2))


@pytest.mark.parametrize(
    ("read", "kind"), [(lambda items: items * 1.0, "array"), (lambda items: (items, None), "tuple")]
)
def test_a_model_that_returns_no_encoding_is_named(read, kind):
    class Bare(SequenceModel):
        def encode(self, events, state, *, dropout_key):
            return read(events.items)

    message = rf"^Bare\.encode must return a \S+\.Encoding, and returned this type: {kind};"
    with pytest.raises(TypeError, match=message):
        jax.jit(lambda events: Bare()(events).hidden)(EVENTS)


@pytest.mark.parametrize("name", ["gated deltanet", "recgrela", "hytrec", "sinkrec", "sasrec"])
def test_a_model_computes_in_bfloat16_on_an_accelerator_unless_told_otherwise(monkeypatch, name):
    """Parameters stay float32; on a CPU, or by "float32", all of the program is float32."""
    config = (CARRYING | WHOLE_ROWS)[name]

    def read(config):
        model, _ = random_model(config)
        dtypes = {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))}
        assert dtypes == {jnp.dtype("float32")}
        graphdef, state = nnx.split(model)
        traced = jax.jit(lambda state: nnx.merge(graphdef, state)(EVENTS).hidden).trace(state)
        return traced.out_info.dtype, traced.lower(lowering_platforms=("cuda",)).as_text()

    dtype, text = read(config)
    assert dtype == jnp.float32 and "bf16" not in text
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    dtype, text = read(config)
    assert dtype == jnp.bfloat16
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert any("xbf16>" in line for line in products)
    dtype, text = read(dataclasses.replace(config, dtype="float32"))
    assert dtype == jnp.float32 and "bf16" not in text


@pytest.mark.parametrize("name", CARRYING)
def test_a_state_is_carried_on_in_bfloat16(name):
    model, _ = random_model(dataclasses.replace(CARRYING[name], dtype="bfloat16"))
    first = run(model, EVENTS, model.initial_state(2))
    second = run(model, EVENTS, first.state)
    assert kinds(second.state) == kinds(first.state)
    assert np.isfinite(np.asarray(second.hidden, np.float32)).all()


class OwnConfig(ModelConfig):
    def build(self, num_items, *, rngs):
        return Own(num_items, rngs=rngs)


class Own(SequenceModel):
    def __init__(self, num_items, *, rngs):
        self.embedding = ItemEmbedding(num_items, 4, dtype=jnp.float32, rngs=rngs)

    def encode(self, events, state, *, dropout_key):
        return Encoding(self.embedding(events.items))


def test_a_model_of_ones_own_needs_no_more_than_build_and_encode():
    config = OwnConfig()
    model = config.build(50, rngs=nnx.Rngs(0))
    encoding = model(EVENTS)
    np.testing.assert_array_equal(encoding.hidden, model.item_table()[EVENTS.items])
    assert encoding.state == NoState() and not model.carries_state
    model.after_step(EVENTS, encoding.counts, jax.random.key(0))
    with pytest.raises(ValueError, match="Own has no matrix memory"):
        trace(model, EVENTS)
    assert config.causal and config.longest_row is None and config.uses("any/kernel") == 1
    assert not (config.reads_timestamps or config.reads_request_times or config.splits_time)
