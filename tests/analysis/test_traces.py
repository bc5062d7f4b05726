"""What a trace keeps is what the model used."""

import numpy as np
import pytest
from flax import nnx

from linseqrec.analysis.traces import is_recurrent, linear_mixers, trace
from linseqrec.events import Events
from linseqrec.layers.gated_delta import GatedDelta
from linseqrec.layers.rela import _attended_alone, _ungated
from linseqrec.models.base import NoState
from linseqrec.models.gated_deltanet import GatedDeltaNetConfig
from linseqrec.models.hytrec import HyTRecConfig
from linseqrec.models.linrec import LinRecConfig
from linseqrec.models.mamba2 import Mamba2Config
from linseqrec.models.own_items import OwnItems
from linseqrec.models.recgrela import RecGRELAConfig
from linseqrec.models.sasrec import SASRecConfig
from linseqrec.models.sinkrec import SinkRecConfig

EVENTS = Events(
    items=np.array([[3, 1, 4, 0], [2, 5, 0, 0]], np.int32),
    timestamps=np.array([[0, 60, 90_000, 0], [5, 7, 0, 0]], np.int32),
    segment_ids=np.array([[1, 1, 1, 0], [1, 1, 0, 0]], np.int32),
    positions=np.array([[0, 1, 2, 0], [0, 1, 0, 0]], np.int32),
)
# By model, the names of its passes, and where its state keeps their memories.
MODELS = {
    "gated deltanet": (
        GatedDeltaNetConfig(width=16, num_layers=2, key_width=8, value_width=8),
        ["blocks/0", "blocks/1"],
        lambda state: [block.memory for block in state],
    ),
    "recgrela": (
        RecGRELAConfig(width=16, heads=2, num_layers=2),
        ["blocks/0", "blocks/1"],
        lambda state: [layer.attention.key_value for layer in state.layers],
    ),
    "hytrec": (
        HyTRecConfig(width=16, short_layers=1, num_layers=2, ratio="1:1", question="delayed"),
        ["long/0"],
        lambda state: [state.long[0].memory],
    ),
    "hytrec asked by the present": (
        HyTRecConfig(
            width=16, short_layers=1, num_layers=2, ratio="1:1", short_events=1, question="present"
        ),
        ["long/0"],
        lambda state: [state.long[0].memory],
    ),
    "hytrec asked by the short branch": (
        HyTRecConfig(
            width=16, short_layers=1, num_layers=2, ratio="1:1", short_events=1, question="short"
        ),
        ["long/0", "reading"],
        lambda state: [state.long[0].memory, state.reading.memory],
    ),
    "sinkrec": (
        SinkRecConfig(width=16, key_width=8, value_width=8, dilations=(1,), levels=1, codes=4),
        ["blocks/0 loop 1", "blocks/0 loop 2"],
        lambda state: [loop.mixer.memory for loop in state.loops],
    ),
    "mamba2": (
        Mamba2Config(width=16, num_layers=2, key_width=8, value_width=8),
        ["blocks/0", "blocks/1"],
        lambda state: [block.memory for block in state],
    ),
    "linrec": (
        LinRecConfig(width=16, heads=2),
        ["blocks/0", "blocks/1"],
        lambda state: [block.attention.key_value for block in state],
    ),
}


@nnx.jit
def read(model, events):
    return model(events), trace(model, events)


@pytest.mark.parametrize("name", MODELS)
def test_memories_are_the_states_and_keys_what_wrote_them(name):
    config, names, memories = MODELS[name]
    model = config.build(5, rngs=nnx.Rngs(0))
    write_at_once(model)
    encoding, traces = read(model, EVENTS)
    assert list(traces) == names
    for traced, memory in zip(traces.values(), memories(encoding.state), strict=True):
        np.testing.assert_array_equal(traced.memory, memory)
        check_keys_wrote(traced)


def write_at_once(model):
    """Draws the taps anew: a fresh lookup's first keys are 0, of events before the history."""
    for mixer in linear_mixers(model):
        if isinstance(mixer, GatedDelta):
            weight = mixer.convolution.weight
            weight[...] = np.random.default_rng(0).normal(size=weight.shape).astype(np.float32)


def check_keys_wrote(traced):
    """A state is a sum of keys times values: nothing lies outside the keys' span."""
    keys, memory = np.asarray(traced.keys, np.float64), np.asarray(traced.memory, np.float64)
    for row, length in enumerate((3, 2)):
        for head in range(keys.shape[2]):
            span = np.linalg.qr(keys[row, :length, head].T)[0]
            outside = memory[row, head] - span @ (span.T @ memory[row, head])
            assert np.linalg.norm(outside) < 1e-5 * np.linalg.norm(memory[row, head])


def test_shuffled_gaps_write_memories_though_none_is_carried():
    # The delayed question: others write an event K events late.
    config = HyTRecConfig(
        width=16, short_layers=1, num_layers=2, ratio="1:1", time="shuffled", question="delayed"
    )
    model = config.build(5, rngs=nnx.Rngs(0))
    write_at_once(model)
    encoding, traces = read(model, EVENTS)
    assert encoding.state == NoState()
    assert list(traces) == ["long/0"]
    check_keys_wrote(traces["long/0"])
    assert all(is_recurrent(mixer) for mixer in linear_mixers(model))


@pytest.mark.parametrize("delay", [1, 3, 5])
def test_a_late_memory_names_the_events_that_it_writes(delay):
    """Its keys are those of the memory in time, so many slots later."""
    late, in_time = (
        HyTRecConfig(
            width=16,
            short_layers=1,
            num_layers=1,
            ratio="1:0",
            short_events=delay,
            question=question,
        ).build(5, rngs=nnx.Rngs(0))
        for question in ("present", "delayed")
    )
    (traced,), (expected,) = (trace(model, EVENTS).values() for model in (late, in_time))
    assert (traced.delay, expected.delay) == (delay, 0)
    for row, events in ((0, 3), (1, 2)):
        for head in range(traced.keys.shape[2]):
            keys = np.asarray(expected.keys)[row, :, head, 0]
            written = traced.of_written(keys, 0.0)[:events]
            np.testing.assert_allclose(written, traced.keys[row, :events, head, 0], atol=1e-6)


@pytest.mark.parametrize("causal", [True, False])
def test_both_branches_of_recgrela_are_kept(causal):
    config = RecGRELAConfig(width=16, heads=2, num_layers=1, causal=causal)
    model = config.build(5, rngs=nnx.Rngs(0))
    traced = trace(model, EVENTS)["blocks/0"]
    attention = model.blocks[0].attention
    assert is_recurrent(attention) == causal
    x = model.blocks[0].attention_norm(model.norm(model.embedding(EVENTS.items)))
    mixed, ids = attention.input_gate(x), EVENTS.segment_ids if causal else None
    # The released form counts positions by slots.
    positions = EVENTS.positions if causal else np.tile(np.arange(4), (2, 1))
    local, _ = attention.shortcut(mixed, ids, attention.shortcut.initial_state(2))
    attention.selector, attention.gate = _attended_alone, _ungated
    attended, _ = attention(x, ids, positions, attention.initial_state(2))
    expected = attention.output(traced.attended)
    np.testing.assert_allclose(attended, expected, atol=1e-6)
    np.testing.assert_allclose(traced.augmented - traced.attended, local, atol=1e-6)
    assert np.abs(local).max() > 1e-4
    alone = RecGRELAConfig(width=16, heads=2, num_layers=1, shortcut=False)
    model = alone.build(5, rngs=nnx.Rngs(0))
    assert trace(model, EVENTS)["blocks/0"].augmented is None


def test_a_model_without_a_matrix_memory_is_refused():
    model = SASRecConfig(width=16, num_layers=1).build(5, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="SASRec has no matrix memory"):
        trace(model, EVENTS)


def test_of_own_items_the_model_inside_is_traced():
    model = MODELS["mamba2"][0].build(5, rngs=nnx.Rngs(0))
    traces, expected = trace(OwnItems(model), EVENTS), trace(model, EVENTS)
    assert list(traces) == list(expected)
    for name, traced in traces.items():
        np.testing.assert_array_equal(traced.memory, expected[name].memory)
