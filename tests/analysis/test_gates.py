"""What is said of gates is what the rule was given."""

import numpy as np
import pytest
from flax import nnx

from linseqrec.analysis import gates
from linseqrec.analysis.figures import gates_figure
from linseqrec.analysis.traces import trace
from linseqrec.events import Events
from linseqrec.models.sinkrec import SinkRecConfig

SMALL = SinkRecConfig(width=16, key_width=8, value_width=8, dilations=(1,), levels=1, codes=4)
EVENTS = Events(
    items=np.array([[3, 1, 4, 2], [2, 5, 0, 0]], np.int32),
    timestamps=np.array([[0, 60, 90_000, 90_001], [5, 7, 0, 0]], np.int32),
    segment_ids=np.array([[1, 1, 1, 1], [1, 1, 0, 0]], np.int32),
    positions=np.array([[0, 1, 2, 3], [0, 1, 0, 0]], np.int32),
)


def test_gates_are_what_the_rule_was_given():
    """By the equations: decays of the gap alone, writes of a constant, a coverage and a λ of one
    bias each, where all that the gates read is multiplied by zeros."""
    model = SMALL.build(5, rngs=nnx.Rngs(0))
    mixer = model.blocks[0].mixer
    for gate in (mixer.decay_gate, mixer.write_gate, mixer.coverage_gate, mixer.removal_gate):
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
    np.testing.assert_allclose(whole["heads"], np.quantile(events, gates.QUANTILES, axis=0).T)


def test_the_figure_shows_each_gate_that_some_model_has():
    reading = {"heads": [[0.1, 0.2, 0.9], [0.3, 0.5, 0.6]]}
    plain = {"blocks/0": dict.fromkeys(("kept", "written"), reading)}
    purified = {
        f"blocks/0 loop {loop}": dict.fromkeys(("kept", "written", "coverage"), reading)
        for loop in (1, 2)
    }
    figure = gates_figure({"plain": plain, "purified": purified}, title="title")
    kept, written, coverage = figure.axes
    assert [panel.get_ylabel()[0] for panel in figure.axes] == ["α", "β", "c"]
    drawn = lambda panel: np.concatenate(  # noqa: E731
        [bars.lines[0].get_ydata() for bars in panel.containers]
    )
    np.testing.assert_allclose(drawn(kept), [0.2, 0.5] * 3)
    np.testing.assert_allclose(drawn(coverage), [0.2, 0.5] * 2)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["plain", "purified"]
