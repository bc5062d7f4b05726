"""Decayed linear attention against its definition in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings

from linseqrec.ops import decayed_linear_attention as module
from linseqrec.ops.chunks import Cut
from linseqrec.ops.decayed_linear_attention import decayed_linear_attention
from tests.ops.closeness import assert_close, projected, relative_rms
from tests.ops.layouts import LAYOUT, segment_layouts

NAMES = ("query", "key", "value", "log_decay")
FORMS = [("recurrent", 64), ("chunked", 1), ("chunked", 7), ("chunked", 64)]
in_all_forms = pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(map(str, form)))


def make(batch, time, *, decay="mild", seed=0):
    """Inputs by name, float32, and an initial state: two heads, keys of 6, values of 5."""
    random = np.random.default_rng(seed)
    shape = (batch, time, 2)
    log_decay = -np.exp(random.normal(size=shape) - 2)
    if decay == "gaps":
        # Seconds beside years: the sum over a chunk is a million times some of its terms.
        log_decay = log_decay + random.choice([0, -400, -1e6], size=shape, p=[0.9, 0.05, 0.05])
    inputs = {
        "query": random.normal(size=(*shape, 6)),
        "key": random.normal(size=(*shape, 6)),
        "value": random.normal(size=(*shape, 5)),
        "log_decay": log_decay,
    }
    state = random.normal(size=(batch, 2, 6, 5)).astype(np.float32)
    return {name: x.astype(np.float32) for name, x in inputs.items()}, state


@partial(jax.jit, static_argnames="form")
def apply(form, inputs, segment_ids=None, state=None):
    implementation, chunk_size = form
    return decayed_linear_attention(
        **inputs,
        segment_ids=segment_ids,
        initial_state=state,
        implementation=implementation,
        chunk_size=chunk_size,
    )


def by_sums(inputs, segment_ids, state):
    """The definition as sums over pairs of events, in float64."""
    query, key, value, log_decay = (np.asarray(inputs[name], np.float64) for name in NAMES)
    batch, time, heads, _ = query.shape
    output, final = np.zeros(value.shape), np.array(state, np.float64)
    for b in range(batch):
        events = np.flatnonzero(segment_ids[b])
        names = segment_ids[b, events]
        for h in range(heads):
            for t, now in zip(events, names, strict=True):
                own = [s for s in events[events <= t] if segment_ids[b, s] == now]
                memory = np.zeros(final.shape[2:])
                for s in own:
                    left = np.exp(sum(log_decay[b, r, h] for r in own if r > s))
                    memory += left * np.outer(key[b, s, h], value[b, s, h])
                if now == names[0]:
                    left = np.exp(sum(log_decay[b, r, h] for r in own))
                    memory += left * np.float64(state[b, h])
                output[b, t, h] = memory.T @ query[b, t, h]
                if t == events[-1]:
                    final[b, h] = memory
    return output, final


def by_scan(inputs, segment_ids, state):
    """The definition an event at a time, to be differentiated in float64."""
    real = segment_ids > 0

    def step(carry, now):
        (memory, before), (query, key, value, log_decay, segment) = carry, now
        new = (segment > 0) & (before > 0) & (segment != before)
        kept = jnp.where(new[:, None, None, None], 0.0, memory)
        written = jnp.exp(log_decay)[..., None, None] * kept + key[..., None] * value[..., None, :]
        after = jnp.where((segment > 0)[:, None, None, None], written, memory)
        output = jnp.sum(after * query[..., None], axis=-2)
        return (after, jnp.where(segment > 0, segment, before)), output

    over_time = [jnp.moveaxis(inputs[name], 1, 0) for name in NAMES] + [segment_ids.T]
    (final, _), output = jax.lax.scan(step, (state, jnp.zeros_like(segment_ids[:, 0])), over_time)
    return jnp.where(real[..., None, None], jnp.moveaxis(output, 0, 1), 0), final


def with_gradients(function, inputs, segment_ids, state):
    """What a function of inputs and state returns, and the gradients of a projection of it."""

    def loss(inputs, state):
        outputs = function(inputs, segment_ids, state)
        return projected(outputs), outputs

    slopes, outputs = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(inputs, state)
    return outputs, slopes


def expected_of(inputs, segment_ids, state):
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: np.asarray(a, np.float64), (inputs, state))
        return jax.tree.map(np.asarray, with_gradients(by_scan, wide[0], segment_ids, wide[1]))


def assert_all_close(actual, expected, tolerance):
    for got, wanted in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        assert np.all(np.isfinite(got))
        assert relative_rms(got, wanted) <= tolerance


@settings(max_examples=10, deadline=None)
@given(segment_ids=segment_layouts(*LAYOUT.shape))
@example(segment_ids=LAYOUT)
@in_all_forms
def test_equals_the_definition_whatever_the_segments(form, segment_ids):
    inputs, state = make(*LAYOUT.shape, decay="gaps")
    output, final = apply(form, inputs, segment_ids, state)
    expected, expected_final = by_sums(inputs, segment_ids, state)
    assert_close(output, expected, 3e-6)
    assert_close(final, expected_final, 3e-6)
    assert np.all(np.asarray(output)[segment_ids == 0] == 0)


@in_all_forms
@pytest.mark.parametrize("decay", ["mild", "gaps"])
def test_gradients_are_those_of_the_definition_and_padding_gets_none(form, decay):
    inputs, state = make(*LAYOUT.shape, decay=decay)
    _, expected = expected_of(inputs, LAYOUT, state)
    for array in inputs.values():
        array[LAYOUT == 0] = np.nan
    (output, _), slopes = with_gradients(partial(apply, form), inputs, LAYOUT, state)
    for array in (output, *slopes[0].values()):
        assert np.all(np.asarray(array)[LAYOUT == 0] == 0)
    assert_all_close(slopes, expected, 1e-5)


@pytest.mark.parametrize(("groups", "chunks", "size"), [(4, 1, 5), (1, 4, 5), (2, 3, 4)])
def test_any_groups_of_chunks(monkeypatch, groups, chunks, size):
    # Which one is used depends on the backend and on what fits.
    monkeypatch.setattr(module, "cut", lambda *_: Cut(groups, chunks, size))
    inputs, state = make(*LAYOUT.shape)
    # A chunk size of its own keeps JAX from taking another test's program.
    form = ("chunked", 1000 * groups + chunks)
    actual = with_gradients(partial(apply, form), inputs, LAYOUT, state)
    assert_all_close(actual, expected_of(inputs, LAYOUT, state), 1e-5)


def test_exact_over_two_thousand_events():
    inputs, state = make(1, 2048, decay="gaps")
    ids = 1 + np.arange(2048, dtype=np.int32)[None] // 300
    expected = expected_of(inputs, ids, state)
    assert_all_close(
        with_gradients(partial(apply, ("chunked", 64)), inputs, ids, state), expected, 2e-5
    )


@in_all_forms
def test_a_row_in_parts_equals_the_whole(form):
    inputs, state = make(2, 19, decay="gaps")
    whole, final = apply(form, inputs, None, state)
    parts = []
    for start, stop in ((0, 1), (1, 9), (9, 19)):
        part, state = apply(
            form, {name: x[:, start:stop] for name, x in inputs.items()}, None, state
        )
        parts.append(part)
    assert_close(np.concatenate(parts, axis=1), whole, 3e-6)
    assert_close(state, final, 3e-6)


@in_all_forms
def test_bfloat16_inputs_are_summed_in_float32(form):
    inputs, state = make(*LAYOUT.shape)
    narrow = {name: jnp.asarray(x, jnp.bfloat16) for name, x in inputs.items()}
    output, final = apply(form, narrow, LAYOUT, state)
    assert output.dtype == jnp.bfloat16 and final.dtype == jnp.float32
    rounded = {name: np.asarray(x, np.float32) for name, x in narrow.items()}
    expected, expected_final = by_sums(rounded, LAYOUT, state)
    assert relative_rms(output, expected) < 5e-3
    assert relative_rms(final, expected_final) < 1e-5


def test_none_picks_the_step_for_one_event_and_chunks_beyond():
    for time, implementation in ((1, "recurrent"), (5, "chunked")):
        inputs, state = make(2, time)
        for picked, named in zip(
            apply((None, 64), inputs, None, state),
            apply((implementation, 64), inputs, None, state),
            strict=True,
        ):
            np.testing.assert_array_equal(picked, named)


@pytest.mark.usefixtures("without_type_checks")
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(key=np.zeros((2, 5, 2, 7))), r"query and key must be \[B, T, H, K\]"),
        (dict(log_decay=np.zeros((2, 5))), r"log_decay must be .* = \(2, 5, 2\), got \(2, 5\)"),
        (dict(segment_ids=np.ones((2, 4), int)), r"segment_ids must be .* = \(2, 5\)"),
        (dict(initial_state=np.zeros((2, 2, 5, 6))), r"initial_state must be .* = \(2, 2, 6, 5\)"),
        (dict(implementation="triton"), "choose None, 'recurrent' or 'chunked'"),
        (dict(chunk_size=0), "chunk_size must be at least 1, got 0"),
    ],
)
def test_what_does_not_fit_is_named(wrong, message):
    inputs, _ = make(2, 5)
    with pytest.raises(ValueError, match=message):
        decayed_linear_attention(**(inputs | wrong))
