"""The occupancy lift and the effective rank, on states whose answer is known."""

import numpy as np
import pytest

from linseqrec.analysis.attention_rank import spectrum
from linseqrec.analysis.figures import state_sink_figure
from linseqrec.analysis.state_sink import effective_rank, occupancy_lift, state_sink


def members(*groups, time=4):
    held = np.zeros((1, len(groups), time), bool)
    for slot, events in enumerate(groups):
        held[0, slot, list(events)] = True
    return held


# Four events of one head, K = 4: their keys are the axes.
KEYS = np.eye(4)[None, :, None, :]


def test_a_group_that_holds_all_of_the_state_has_the_largest_lift():
    state = np.zeros((1, 1, 4, 3))
    state[0, 0, 1] = [1.0, 2.0, 3.0]
    assert occupancy_lift(state, KEYS, members([1])) == pytest.approx(4.0)
    assert occupancy_lift(state, KEYS, members([0])) == pytest.approx(0.0)
    # Two directions of four, of which one holds everything.
    assert occupancy_lift(state, KEYS, members([0], [1])) == pytest.approx(2.0)
    # One group of both events: its mean key leans halfway towards the direction that is held.
    assert occupancy_lift(state, KEYS, members([0, 1])) == pytest.approx(2.0)


def test_a_state_that_prefers_no_direction_has_lift_one():
    state = np.eye(4)[None, None]
    keys = np.random.default_rng(0).normal(size=(1, 4, 1, 4))
    assert occupancy_lift(state, keys, members([0, 2], [1])) == pytest.approx(1.0)


def test_groups_in_one_direction_count_once_and_empty_ones_not_at_all():
    state = np.zeros((1, 1, 4, 3))
    state[0, 0, 1] = 1.0
    keys = np.stack([KEYS[0, 1], 2 * KEYS[0, 1], KEYS[0, 2], KEYS[0, 3]])[None]
    assert occupancy_lift(state, keys, members([0], [1])) == pytest.approx(4.0)
    assert occupancy_lift(state, KEYS, members([1], [])) == pytest.approx(4.0)
    assert np.isnan(occupancy_lift(state, KEYS, members([], [])))
    assert np.isnan(occupancy_lift(0 * state, KEYS, members([1])))


def test_effective_rank():
    np.testing.assert_allclose(effective_rank(np.array([3.0, 3.0, 3.0])), 3.0)
    np.testing.assert_allclose(effective_rank(np.array([3.0, 0.0, 0.0])), 1.0)
    # Shares 1/2, 1/4, 1/4: entropy 1.5 bits.
    np.testing.assert_allclose(effective_rank(np.array([2.0, 1.0, 1.0])), 2**1.5)
    assert np.isnan(effective_rank(np.zeros(3)))


def test_near_repeats_fill_a_decaying_memory_and_suppressed_writes_do_so_less():
    # The toy of the specification: 32 dimensions, decay 0.98, 90 % near-repeats of one key.
    time, width = 512, 32

    def lift(share, write, seed):
        rng = np.random.default_rng(seed)
        pattern, answer = rng.normal(size=(2, width))
        repeats = rng.random(time) < share
        keys = rng.normal(size=(time, width))
        keys[repeats] = pattern + 0.3 * rng.normal(size=(repeats.sum(), width))
        keys /= np.linalg.norm(keys, axis=1, keepdims=True)
        state = np.zeros((width, width))
        for key, repeat in zip(keys, repeats, strict=True):
            state *= 0.98
            value, beta = (answer, write) if repeat else (rng.normal(size=width), 1.0)
            state += beta * np.outer(key, value - key @ state)
        group = (repeats if share else rng.random(time) < 0.1)[None, None]
        return state_sink(state[None, None], keys[None, :, None], group, ~group).lift.item()

    sunk, suppressed, without = (
        np.mean([lift(share, write, seed) for seed in range(3)])
        for share, write in ((0.9, 1.0), (0.9, 0.05), (0.0, 1.0))
    )
    assert sunk > 1.3 * suppressed > 3
    assert 0.5 < without < 2


def test_summaries_are_over_users():
    rng = np.random.default_rng(0)
    state, keys = rng.normal(size=(3, 2, 4, 4)), rng.normal(size=(3, 4, 2, 4))
    held = np.repeat(members([0, 1]), 3, axis=0)
    held[2] = False
    reading = state_sink(state, keys, held, ~held)
    summary = reading.summary()["occupancy_lift"]
    users = reading.lift[:2].mean(axis=1)
    assert summary["users"] == 2
    assert summary["mean"] == pytest.approx(users.mean())
    assert summary["standard_error"] == pytest.approx(abs(users[0] - users[1]) / 2)
    np.testing.assert_allclose(summary["heads"], reading.lift[:2].mean(axis=0))


def test_a_spectrum_is_of_the_events_alone():
    output = np.zeros((2, 5, 3))
    output[0, :2] = [[3.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    output[1] = np.nan
    output[1, 1:3] = [[2.0, 2.0, 0.0], [1.0, 1.0, 0.0]]
    real = np.zeros((2, 5), bool)
    real[0, :2] = real[1, 1:3] = True
    np.testing.assert_allclose(
        spectrum(output, real).values, [[0.75, 0.25, 0.0], [1.0, 0.0, 0.0]], atol=1e-12
    )


def test_the_figures_legend_covers_no_reading():
    reading = {"mean": 5.0, "standard_error": 0.1}
    mixers = {
        "blocks/0": dict.fromkeys(("occupancy_lift", "control_lift", "effective_rank"), reading)
    }
    runs = [f"model {index}" for index in range(8)]
    figure = state_sink_figure(dict.fromkeys(runs, mixers), {run: run for run in runs}, "title")
    figure.canvas.draw()
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 16
    for panel in figure.axes:
        assert panel.get_legend() is None
        assert not legend.get_window_extent().overlaps(panel.get_window_extent())
