"""The diagonal recurrence against its definition in complex128."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings

from linseqrec.ops.diagonal_recurrence import diagonal_recurrence
from tests.ops.closeness import relative_rms
from tests.ops.layouts import LAYOUT, packed, segment_layouts

CHANNELS = 6
apply = jax.jit(
    lambda inputs, multiplier, segment_ids=None, initial_state=None: diagonal_recurrence(
        inputs, multiplier, segment_ids=segment_ids, initial_state=initial_state
    )
)


def make(batch, time, seed=0):
    """Inputs, multipliers near the unit circle, and a state; complex64."""
    random = np.random.default_rng(seed)

    def normal(*shape):
        return (random.normal(size=shape) + 1j * random.normal(size=shape)).astype(np.complex64)

    radius, angle = random.uniform(0.8, 0.999, CHANNELS), random.uniform(0, 6.28, CHANNELS)
    multiplier = (radius * np.exp(1j * angle)).astype(np.complex64)
    return normal(batch, time, CHANNELS), multiplier, normal(batch, CHANNELS)


def by_loops(inputs, multiplier, segment_ids, state):
    inputs, multiplier = inputs.astype(np.complex128), multiplier.astype(np.complex128)
    states, final = np.zeros_like(inputs), state.astype(np.complex128)
    for b, ids in enumerate(segment_ids):
        h, before = final[b], None
        for t in np.flatnonzero(ids):
            if before not in (None, ids[t]):
                h = np.zeros_like(h)
            before = ids[t]
            h = multiplier * h + inputs[b, t]
            states[b, t] = h
        final[b] = h
    return states, final


@settings(max_examples=20, deadline=None)
@given(segment_ids=segment_layouts(*LAYOUT.shape))
@example(segment_ids=LAYOUT)
def test_equals_the_definition_whatever_the_segments(segment_ids):
    inputs, multiplier, state = make(*LAYOUT.shape)
    states, final = apply(inputs, multiplier, segment_ids, state)
    expected, expected_final = by_loops(inputs, multiplier, segment_ids, state)
    assert relative_rms_of(states, expected) < 1e-6
    assert relative_rms_of(final, expected_final) < 1e-6
    assert np.all(np.asarray(states)[segment_ids == 0] == 0)
    empty = ~segment_ids.any(1)
    np.testing.assert_array_equal(np.asarray(final)[empty], state[empty])


def relative_rms_of(actual, expected):
    parts = (np.stack([np.asarray(x).real, np.asarray(x).imag]) for x in (actual, expected))
    return relative_rms(*parts)


def test_exact_over_two_thousand_events():
    inputs, multiplier, state = make(1, 2048)
    ids = np.array([[1] * 700 + [2] * 1348])
    assert (
        relative_rms_of(
            apply(inputs, multiplier, ids, state)[0], by_loops(inputs, multiplier, ids, state)[0]
        )
        < 2e-6
    )


def test_gradients_are_those_of_the_definition():
    """Of the real loss that a model makes of real parts, in inputs, multiplier and state."""
    inputs, multiplier, state = make(*LAYOUT.shape)
    # As the definition's, by central differences in complex128.
    weights = np.random.default_rng(1).normal(size=(2, *inputs.shape))
    of_final = np.random.default_rng(2).normal(size=(2, *state.shape))

    def projected(outputs):
        states, final = outputs
        total = (weights[0] * states.real + weights[1] * states.imag).sum()
        return total + (of_final[0] * final.real + of_final[1] * final.imag).sum()

    def loss(inputs, multiplier, state):
        return projected(apply(inputs, multiplier, LAYOUT, state))

    slopes = jax.grad(loss, (0, 1, 2))(inputs, multiplier, state)
    random, size = np.random.default_rng(3), 1e-4
    for index, slope in enumerate(slopes):
        for _ in range(3):
            arguments = [np.asarray(x, np.complex128) for x in (inputs, multiplier, state)]
            shape = arguments[index].shape
            step = random.normal(size=shape) + 1j * random.normal(size=shape)
            ends = []
            for sign in (1, -1):
                moved = list(arguments)
                moved[index] = moved[index] + sign * size * step
                ends.append(projected(by_loops(moved[0], moved[1], LAYOUT, moved[2])))
            wanted = (ends[0] - ends[1]) / (2 * size)
            # JAX's gradient of a real loss is conjugate to the direction of its steepest ascent.
            got = np.sum(np.asarray(slope) * step).real
            np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-3)


def test_nothing_comes_from_padding_or_the_future():
    inputs, multiplier, state = make(*LAYOUT.shape)
    expected = apply(inputs, multiplier, LAYOUT, state)
    dirty = np.where((LAYOUT == 0)[..., None], np.nan, inputs)
    for got, wanted in zip(apply(dirty, multiplier, LAYOUT, state), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)
    for t in range(1, 19):
        later = inputs.copy()
        later[:, t:] *= 0.7
        after, _ = apply(later, multiplier)
        np.testing.assert_array_equal(after[:, :t], apply(inputs, multiplier)[0][:, :t])


def test_packed_row_equals_its_parts_in_any_order_and_padding():
    inputs, multiplier, _ = make(1, 19)

    def run(order, gaps):
        row, segment_ids, places = packed({"inputs": inputs}, order, gaps)
        states, final = apply(row["inputs"], multiplier, segment_ids)
        return {part: states[:, place] for part, place in places.items()}, final

    alone = {part: run([part], [part]) for part in range(4)}
    for order, gaps in [([0, 1, 2, 3], [0, 0, 0, 0]), ([2, 0, 3, 1], [3, 0, 1, 1])]:
        outputs, final = run(order, gaps)
        for part, states in outputs.items():
            assert relative_rms_of(states, alone[part][0][part]) < 1e-6
        assert relative_rms_of(final, alone[order[-1]][1]) < 1e-6


@pytest.mark.usefixtures("without_type_checks")
def test_what_does_not_fit_is_refused():
    inputs, multiplier, state = make(2, 19)
    with pytest.raises(ValueError, match=r"multiplier must have the shape \(6,\), got \(5,\)"):
        diagonal_recurrence(inputs, multiplier[:5])
    with pytest.raises(ValueError, match=r"initial_state must have the shape \(2, 6\), got"):
        diagonal_recurrence(inputs, multiplier, initial_state=state[:1])
    with pytest.raises(ValueError, match=r"segment_ids must have the shape \(2, 19\), got"):
        diagonal_recurrence(inputs, multiplier, segment_ids=jnp.ones((2, 4), jnp.int32))
