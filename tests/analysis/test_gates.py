"""What is said of gates is what the rule was given."""

import jax
import numpy as np
import pytest
from flax import nnx

from linseqrec.analysis import gates, traces
from linseqrec.analysis.figures import gates_figure
from linseqrec.events import Events
from linseqrec.models.hytrec import HyTRecConfig
from linseqrec.models.sinkrec import SinkRecConfig

SMALL = SinkRecConfig(width=16, key_width=8, value_width=8, dilations=(1,), levels=1, codes=4)
EVENTS = Events(
    items=np.array([[3, 1, 4, 2], [2, 5, 0, 0]], np.int32),
    timestamps=np.array([[0, 60, 90_000, 90_001], [5, 7, 0, 0]], np.int32),
    segment_ids=np.array([[1, 1, 1, 1], [1, 1, 0, 0]], np.int32),
    positions=np.array([[0, 1, 2, 3], [0, 1, 0, 0]], np.int32),
)


trace = nnx.jit(traces.trace)


def test_gates_are_what_the_rule_was_given():
    """By the equations: decays of the gap alone, writes of a constant, a coverage and a λ of one
    bias each, where all that the gates read is multiplied by zeros."""
    model = SMALL.build(5, rngs=nnx.Rngs(0))
    mixer = model.blocks[0].mixer
    for gate in (mixer.decay_gate, mixer.write_strength, mixer.coverage_gate, mixer.removal_gate):
        gate.kernel[...] = 0 * gate.kernel[...]
    mixer.coverage_weights[...] = 0 * mixer.coverage_weights[...]
    mixer.coverage_bias[...] = np.array([np.log(1 / 3), 0.0], np.float32)  # c = 1/4, 1/2
    mixer.removal_bias[...] = np.array([np.log(1 / 9), np.log(4)], np.float32)  # λ = .1, .8
    mixer.log_rate[...] = np.zeros(2, np.float32)
    mixer.step_bias[...] = np.full(2, np.log(np.e - 1), np.float32)  # softplus of it is 1
    mixer.log_horizon[...] = np.log(np.array([1.0, 2.0], np.float32))  # days
    first, second = trace(model, EVENTS).values()
    days = np.array([0, 60, 89_940, 1]) / 86_400
    kept = np.exp(-1 - days[:, None] / [1.0, 2.0])
    for passed in (first, second):
        np.testing.assert_allclose(passed.gates["kept"][0], kept, rtol=1e-5)
        np.testing.assert_allclose(passed.gates["written"][0], 0.5 * np.tile([0.75, 0.5], (4, 1)))
        np.testing.assert_allclose(passed.gates["coverage"][0, 1], [0.25, 0.5], rtol=1e-6)
        np.testing.assert_allclose(passed.gates["removal"][0, 2], [0.1, 0.8], rtol=1e-6)


def test_gates_that_a_mixer_lacks_are_not_read():
    plain = SinkRecConfig(width=16, key_width=8, value_width=8, memory=False)
    model = plain.build(5, rngs=nnx.Rngs(0))
    for passed in trace(model, EVENTS).values():
        assert set(passed.gates) == {"kept", "written"}


@pytest.mark.parametrize(
    "gate, written",
    [("write", 0.1), ("retention", 0.5), ("erase", 0.5), ("beta", 0.1), ("none", 0.5)],
)
def test_what_hytrec_writes_is_told_from_what_it_erases(gate, written):
    """s = .2 and a gate of .5 by their biases; into an empty memory goes k (written v)ᵀ."""
    # The delayed question: others write an event K events late.
    config = HyTRecConfig(
        width=8, heads=2, num_layers=1, ratio="1:0", gate=gate, short_layers=1, question="delayed"
    )
    model = config.build(5, rngs=nnx.Rngs(0))
    mixer = model.long[0].mixer
    # A fresh lookup's first key is 0, of the event before the history.
    mixer.convolution.weight[...] = np.ones_like(mixer.convolution.weight[...])
    mixer.write_strength.kernel[...] = 0 * mixer.write_strength.kernel[...]
    if gate != "none":
        mixer.spike_gate.kernel[...] = 0 * mixer.spike_gate.kernel[...]
        mixer.spike_gate.bias[...] = np.full(2, np.log(0.25), np.float32)
    one = jax.tree.map(lambda x: x[:, :1], EVENTS)
    (traced,) = trace(model, one).values()
    np.testing.assert_allclose(traced.gates["written"], np.full((2, 1, 2), written), rtol=1e-5)
    if gate != "none":
        np.testing.assert_allclose(traced.gates["spike"], np.full((2, 1, 2), 0.2), rtol=1e-5)
    assert ("spike" in traced.gates) == (gate != "none")
    x = model.long[0].mixer_norm(model.embedding(one.items) * config.width**0.5)
    _, _, value, _ = mixer.project(x, one.segment_ids, mixer.convolution.initial_state(len(x)))
    size = np.linalg.norm(traced.memory, axis=(2, 3)) / np.linalg.norm(value[:, 0], axis=-1)
    # Keys are short of length 1 by what keeps them from a division by zero.
    np.testing.assert_allclose(size, written, rtol=0.05)


def test_padding_is_no_reading():
    rng = np.random.default_rng(0)
    values = rng.random((3, 4, 2))
    real = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]], bool)
    whole = gates.summarise([({"kept": values}, real)])["kept"]
    filled = np.where(real[..., None], values, np.nan)
    parts = [({"kept": filled[:1]}, real[:1]), ({"kept": filled[1:]}, real[1:])]
    assert gates.summarise(parts)["kept"] == whole
    means = [values[0].mean(), values[1, :2].mean()]
    assert whole["users"] == 2
    assert whole["mean"] == pytest.approx(np.mean(means))
    assert whole["standard_error"] == pytest.approx(abs(means[0] - means[1]) / 2)
    events = np.concatenate([values[0], values[1, :2]])
    for name, share in (("low", 0.1), ("median", 0.5), ("high", 0.9)):
        expected = np.quantile(events, share, axis=0)
        np.testing.assert_allclose([head[name] for head in whole["heads"]], expected)
    nobody = gates.summarise([({"kept": values}, 0 * real == 1)])["kept"]
    assert nobody["users"] == 0 and np.isnan(nobody["heads"][1]["median"])


def test_the_figure_shows_each_gate_that_some_model_has():
    reading = {
        "heads": [
            {"low": 0.1, "median": 0.2, "high": 0.9},
            {"low": 0.3, "median": 0.5, "high": 0.6},
        ]
    }
    plain = {"blocks/0": dict.fromkeys(("kept", "written"), reading)}
    purified = {
        f"blocks/0 loop {loop}": dict.fromkeys(("kept", "written", "coverage"), reading)
        for loop in (1, 2)
    }
    runs = {"plain": plain, "purified": purified}
    figure = gates_figure(runs, {run: run for run in runs}, "title")
    kept, written, coverage = figure.axes
    labels = [panel.get_ylabel().split("\n") for panel in figure.axes]
    assert [first for first, _ in labels] == [
        "α, kept of the state",
        "written of a value",
        "c, suppressed of a write",
    ]
    assert {second for _, second in labels} == {"median, 10 to 90% of events"}
    drawn = lambda panel: np.concatenate(  # noqa: E731
        [bars.lines[0].get_ydata() for bars in panel.containers]
    )
    np.testing.assert_allclose(drawn(kept), [0.2, 0.5] * 3)
    np.testing.assert_allclose(drawn(coverage), [0.2, 0.5] * 2)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["plain", "purified"]
