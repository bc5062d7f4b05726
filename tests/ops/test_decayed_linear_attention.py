"""Decayed linear attention against its definition in float64, tolerances by relative RMS."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings

from linseqrec.ops import decayed_linear_attention as op
from linseqrec.ops.decayed_linear_attention import decayed_linear_attention
from linseqrec.ops.segments import Cut
from tests.ops.closeness import projected, relative_rms
from tests.ops.layouts import LAYOUT, packed, segment_layouts

HEADS, KEY, VALUE = 2, 12, 7
FORMS = [("recurrent", 64), ("chunked", 7), ("chunked", 64)]
in_all = pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(map(str, form)))


def make(batch, time, *, decay="mild", seed=0):
    """Inputs by name, float32, and an initial state."""
    random = np.random.default_rng(seed)
    shape = (batch, time, HEADS)
    if decay == "mild":
        log_decay = -np.exp(random.normal(size=shape) - 2)
    elif decay == "gaps":
        gap = random.choice([0, -400, -1e4], size=shape, p=[0.9, 0.05, 0.05])
        log_decay = -np.exp(random.normal(size=shape) - 3) + gap
    else:
        log_decay = np.full(shape, decay, float)
    inputs = {
        "query": random.normal(size=(*shape, KEY)),
        "key": random.normal(size=(*shape, KEY)),
        "value": random.normal(size=(*shape, VALUE)),
        "log_decay": log_decay,
    }
    state = random.normal(size=(batch, HEADS, KEY, VALUE))
    return {name: x.astype(np.float32) for name, x in inputs.items()}, state.astype(np.float32)


@partial(jax.jit, static_argnames="form")
def apply(form, inputs, segment_ids=None, initial_state=None):
    implementation, chunk_size = form
    return decayed_linear_attention(
        **inputs,
        segment_ids=segment_ids,
        initial_state=initial_state,
        implementation=implementation,
        chunk_size=chunk_size,
    )


@partial(jax.jit, static_argnames="form")
def apply_and_differentiate(form, inputs, segment_ids, state):
    """(output, final state) and their gradients with respect to inputs and state."""

    def loss(inputs, state):
        outputs = apply(form, inputs, segment_ids, state)
        return projected(outputs), outputs

    slopes, outputs = jax.grad(loss, (0, 1), has_aux=True)(inputs, state)
    return outputs, slopes


def by_loops(inputs, segment_ids, state):
    """The definition, an event at a time, in float64."""
    query, key, value, log_decay = (np.asarray(x, np.float64) for x in inputs.values())
    output, final = np.zeros(value.shape), np.array(state, np.float64)
    for b, h in np.ndindex(final.shape[:2]):
        memory, before = final[b, h], None
        for t in np.flatnonzero(segment_ids[b]):
            if before not in (None, segment_ids[b, t]):
                memory = np.zeros_like(memory)
            before = segment_ids[b, t]
            memory = np.exp(log_decay[b, t, h]) * memory + np.outer(key[b, t, h], value[b, t, h])
            output[b, t, h] = memory.T @ query[b, t, h]
        final[b, h] = memory
    return output, final


@jax.jit
def slopes_by_sums(inputs, segment_ids, state):
    """Gradients of the closed form: all pairs of slots at once."""

    def outputs(x, state):
        ids, time = segment_ids, segment_ids.shape[1]
        real = ids > 0
        first = jnp.take_along_axis(ids, jnp.argmax(real, axis=1)[:, None], 1)
        last = jnp.take_along_axis(ids, time - 1 - jnp.argmax(real[:, ::-1], 1)[:, None], 1)
        total = jnp.cumsum(jnp.where(real[..., None], x["log_decay"], 0), axis=1)
        past = jnp.tri(time, dtype=bool)
        left = jnp.exp(jnp.where(past[..., None], total[:, :, None] - total[:, None], 0))
        seen = (ids[:, :, None] == ids[:, None]) & real[:, None] & past
        scores = jnp.einsum("bthk,bshk->btsh", x["query"], x["key"]) * left * seen[..., None]
        output = jnp.einsum("btsh,bshv->bthv", scores, x["value"])
        # What was before the row, for the first segment only.
        kept = jnp.where(((ids == first) & real)[..., None], jnp.exp(total), 0)
        output += jnp.einsum("bthk,bhkv,bth->bthv", x["query"], state, kept)
        written = jnp.where((ids == last)[..., None], jnp.exp(total[:, -1:] - total), 0)
        final = jnp.einsum("bth,bthk,bthv->bhkv", written, x["key"], x["value"])
        whole = jnp.where(first == last, jnp.exp(total[:, -1]), 0)
        return output, final + whole[..., None, None] * state

    return jax.grad(lambda x, state: projected(outputs(x, state)), (0, 1))(inputs, state)


def expected_slopes(inputs, segment_ids, state):
    with jax.enable_x64(True):
        wide = {name: np.asarray(x, np.float64) for name, x in inputs.items()}
        slopes = slopes_by_sums(wide, segment_ids, np.asarray(state, np.float64))
        return jax.tree.map(np.asarray, slopes)


def assert_all_close(actual, expected, tolerance, absolute=1e-6):
    """Each array by its relative RMS; where what is expected vanishes, absolutely."""
    leaves = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    for index, (got, wanted) in enumerate(leaves):
        assert np.all(np.isfinite(np.asarray(got, np.float64))), index
        if np.sqrt(np.mean(np.square(wanted))) < absolute:
            np.testing.assert_allclose(got, wanted, rtol=0, atol=absolute)
        else:
            assert relative_rms(got, wanted) <= tolerance, (index, relative_rms(got, wanted))


@in_all
@pytest.mark.parametrize("decay", ["mild", "gaps", 0.0, -0.1, -20.0])
def test_exact_against_the_definition(form, decay):
    inputs, state = make(2, 150, decay=decay)
    ids = np.repeat(np.array([[1] * 40 + [3] * 20 + [0] * 9 + [2] * 81]), 2, axis=0)
    actual, slopes = apply_and_differentiate(form, inputs, ids, state)
    assert_all_close(actual, by_loops(inputs, ids, state), 2e-6)
    assert_all_close(slopes, expected_slopes(inputs, ids, state), 1e-5)


@in_all
def test_bfloat16_inputs(form):
    inputs, state = make(2, 150, decay="gaps")
    for name in ("query", "key", "value"):
        inputs[name] = jnp.asarray(inputs[name], jnp.bfloat16)
    ids = np.ones((2, 150), np.int32)
    (output, final), slopes = apply_and_differentiate(form, inputs, ids, state)
    assert output.dtype == jnp.bfloat16 and final.dtype == jnp.float32
    assert slopes[0]["key"].dtype == jnp.bfloat16
    assert_all_close((output, final), by_loops(inputs, ids, state), 5e-3)
    assert_all_close(slopes, expected_slopes(inputs, ids, state), 1e-2)


@in_all
@settings(max_examples=12, deadline=None)
@given(segment_ids=segment_layouts(*LAYOUT.shape))
@example(segment_ids=LAYOUT)
def test_equals_the_definition_whatever_the_segments(form, segment_ids):
    inputs, state = make(*LAYOUT.shape, decay="gaps")
    output, final = apply(form, inputs, segment_ids, state)
    assert_all_close((output, final), by_loops(inputs, segment_ids, state), 2e-6)
    assert np.all(np.asarray(output)[segment_ids == 0] == 0)
    empty = ~segment_ids.any(1)
    np.testing.assert_array_equal(np.asarray(final)[empty], state[empty])


@pytest.mark.parametrize(("groups", "chunks", "size"), [(4, 1, 5), (1, 4, 5), (2, 3, 4)])
def test_any_groups_of_chunks(monkeypatch, groups, chunks, size):
    # Which one is used depends on the backend and on what fits.
    monkeypatch.setattr(op, "cut", lambda *_: Cut(groups, chunks, size))
    inputs, state = make(*LAYOUT.shape, decay="gaps")
    # A chunk size of its own keeps JAX from taking another test's program.
    form = ("chunked", 1000 * groups + chunks)
    actual, slopes = apply_and_differentiate(form, inputs, LAYOUT, state)
    assert_all_close(actual, by_loops(inputs, LAYOUT, state), 2e-6)


@in_all
def test_a_horizon_learns_from_small_gaps_between_large_ones(form):
    """Its gradient weights each log-decay's by the gap: no rounding error may stand for a zero."""
    inputs, state = make(2, 150)
    gap = np.random.default_rng(1).choice([0.001, 100, 900], (2, 150, 1))
    inputs["log_decay"] = np.broadcast_to(-gap, inputs["log_decay"].shape).astype(np.float32)
    slopes = apply_and_differentiate(form, inputs, None, state)[1][0]["log_decay"]
    expected = expected_slopes(inputs, np.ones((2, 150), np.int32), state)[0]["log_decay"]
    of_horizon = lambda slope: np.sum(gap * np.asarray(slope, np.float64), axis=(0, 1))  # noqa: E731
    np.testing.assert_allclose(of_horizon(slopes), of_horizon(expected), rtol=1e-5)


@in_all
def test_nothing_comes_from_padding(form):
    inputs, state = make(*LAYOUT.shape)
    expected, slopes = apply_and_differentiate(form, inputs, LAYOUT, state)
    for array in inputs.values():
        array[LAYOUT == 0] = np.nan
    actual, actual_slopes = apply_and_differentiate(form, inputs, LAYOUT, state)
    for got, wanted in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        np.testing.assert_array_equal(got, wanted)
    for got, wanted in zip(*map(jax.tree.leaves, (actual_slopes, slopes)), strict=True):
        np.testing.assert_array_equal(got, wanted)


@in_all
def test_forgetting_everything_is_a_fresh_start(form):
    """A log-decay of -inf, in the middle of chunks and at their edges."""
    inputs, state = make(2, 19)
    inputs["log_decay"][:, [4, 9, 10]] = -np.inf
    ids = np.ones((2, 19), np.int32)
    actual, slopes = apply_and_differentiate(form, inputs, ids, state)
    assert_all_close(actual, by_loops(inputs, ids, state), 2e-6)
    assert all(np.all(np.isfinite(slope)) for slope in jax.tree.leaves(slopes))


@in_all
def test_nothing_reads_the_future(form):
    inputs, _ = make(2, 19)
    before, _ = apply(form, inputs)
    for t in range(1, 19):
        changed = {name: array.copy() for name, array in inputs.items()}
        for array in changed.values():
            array[:, t:] *= 0.7
        after, _ = apply(form, changed)
        np.testing.assert_array_equal(after[:, :t], before[:, :t])
        assert np.all(np.any(after[:, t] != before[:, t], axis=-1))


@in_all
def test_packed_row_equals_its_parts_in_any_order_and_padding(form):
    inputs, _ = make(1, 19)

    def run(order, gaps):
        row, segment_ids, places = packed(inputs, order, gaps)
        output, final = apply(form, row, segment_ids)
        return {part: output[:, place] for part, place in places.items()}, final

    alone = {part: run([part], [part]) for part in range(4)}
    for order, gaps in [([0, 1, 2, 3], [0, 0, 0, 0]), ([2, 0, 3, 1], [3, 0, 1, 1])]:
        outputs, final = run(order, gaps)
        for part, output in outputs.items():
            assert relative_rms(output, alone[part][0][part]) < 1e-6
        assert relative_rms(final, alone[order[-1]][1]) < 1e-6


def test_serving_an_event_at_a_time_equals_training():
    inputs, state = make(*LAYOUT.shape, decay="gaps")
    output, final = apply(("chunked", 5), inputs, None, state)
    serve, steps = jax.jit(decayed_linear_attention), []
    for t in range(19):
        step, state = serve(
            **{name: array[:, t : t + 1] for name, array in inputs.items()}, initial_state=state
        )
        steps.append(step)
    assert relative_rms(np.concatenate(steps, axis=1), output) < 2e-6
    assert relative_rms(state, final) < 2e-6


@pytest.mark.usefixtures("without_type_checks")
def test_what_does_not_fit_is_refused():
    inputs, state = make(2, 19)
    with pytest.raises(ValueError, match=r"log_decay must be \[B, T, H\] = \(2, 19, 2\), got"):
        decayed_linear_attention(**inputs | {"log_decay": inputs["log_decay"][..., :1]})
    with pytest.raises(ValueError, match=r"initial_state must be \[B, H, K, V\] = \(2, 2, 12, 7\)"):
        decayed_linear_attention(**inputs, initial_state=state[:1])
    with pytest.raises(
        ValueError, match=r"segment_ids must be \[B, T\] = \(2, 19\), got \(2, 18\)"
    ):
        decayed_linear_attention(**inputs, segment_ids=np.ones((2, 18), np.int32))
    with pytest.raises(ValueError, match="query and key must be"):
        decayed_linear_attention(**inputs | {"key": inputs["key"][..., :3]})
    with pytest.raises(ValueError, match="implementation 'fast': choose None, 'recurrent' or"):
        decayed_linear_attention(**inputs, implementation="fast")
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        decayed_linear_attention(**inputs, chunk_size=0)
