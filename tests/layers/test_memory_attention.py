"""The windowed attention with memory slots: against float64 NumPy, and its state."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linseqrec.layers.memory_attention import MemoryAttention
from linseqrec.models.weights import load_parameters, parameter_arrays
from tests.models.reference import jit
from tests.ops.closeness import assert_close
from tests.ops.layouts import LAYOUT

WIDTH, HEADS, WINDOW, SLOTS, SLOT_WIDTH = 8, 2, 5, 3, 4


def layer(window=WINDOW, slot_width=SLOT_WIDTH, kernel=3):
    made = MemoryAttention(
        WIDTH, HEADS, window=window, slot_width=slot_width, kernel=kernel, rngs=nnx.Rngs(0)
    )
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=a.shape) / 2 for name, a in parameter_arrays(made).items()}
    load_parameters(made, arrays)
    return made, arrays


def random_inputs(seed=1):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(*LAYOUT.shape, WIDTH)).astype(np.float32)
    return x, rng.normal(size=(*LAYOUT.shape, SLOTS, SLOT_WIDTH)).astype(np.float32)


def apply(made, x, ids, state=None, slots=None):
    state = made.initial_state(len(x)) if state is None else state
    slots = np.zeros((*x.shape[:2], 0, SLOT_WIDTH)) if slots is None else slots
    graphdef, params = nnx.split(made)
    return _apply(graphdef, params, jnp.asarray(x), jnp.asarray(ids), state, slots)


@partial(jit, static_argnums=0)
def _apply(graphdef, params, x, ids, state, slots):
    return nnx.merge(graphdef, params)(x, ids, state, slots=slots)


def reference(arrays, x, ids, slots, window=WINDOW):
    x, slots = np.float64(x), np.float64(slots)
    mixed = x @ arrays["query_key_value/kernel"]
    if "convolution/weight" in arrays:
        mixed = convolution(np.float64(arrays["convolution/weight"]), mixed, ids)
    q, k, v = np.split(mixed, 3, axis=-1)
    mk, mv = np.split(slots @ arrays["memory_key_value/kernel"], 2, axis=-1)
    output = np.zeros_like(x)
    for b, row in enumerate(ids):
        for t in np.flatnonzero(row):
            seen = [s for s in range(max(0, t - window + 1), t + 1) if row[s] == row[t]]
            for head in np.split(np.arange(WIDTH), HEADS):
                keys = np.vstack([k[b, seen][:, head], mk[b, t][:, head]])
                values = np.vstack([v[b, seen][:, head], mv[b, t][:, head]])
                weights = np.exp(keys @ q[b, t, head] / np.sqrt(len(head)))
                output[b, t, head] = weights @ values / weights.sum()
    return output @ arrays["output/kernel"]


def convolution(weight, x, ids):
    """SiLU of the weighted sum over an event and those of its history right before it."""
    output = np.zeros_like(x)
    for b, row in enumerate(ids):
        for t in np.flatnonzero(row):
            taps = [s for s in range(max(0, t - len(weight) + 1), t + 1) if row[s] == row[t]]
            mixed = sum(weight[s - t - 1] * x[b, s] for s in taps)
            output[b, t] = mixed / (1 + np.exp(-mixed))
    return output


@pytest.mark.parametrize("kernel", [3, None])
@pytest.mark.parametrize("window", [1, 5, 100])
def test_it_is_one_softmax_over_the_window_and_the_querys_own_slots(window, kernel):
    made, arrays = layer(window, kernel=kernel)
    x, slots = random_inputs()
    output, _ = apply(made, x, LAYOUT, slots=slots)
    assert_close(output, reference(arrays, x, LAYOUT, slots, window), 1e-5)


def test_without_slots_it_is_sliding_window_attention():
    made, arrays = layer(slot_width=None)
    x, _ = random_inputs()
    none = np.zeros((*LAYOUT.shape, 0, SLOT_WIDTH))
    arrays["memory_key_value/kernel"] = np.zeros((SLOT_WIDTH, 2 * WIDTH))
    assert_close(apply(made, x, LAYOUT)[0], reference(arrays, x, LAYOUT, none), 1e-5)


def test_a_slot_reaches_its_own_query_only():
    made, _ = layer()
    x, slots = random_inputs()
    changed = slots.copy()
    changed[:, 8] += 1
    ids = np.ones_like(LAYOUT)
    first, second = (np.asarray(apply(made, x, ids, slots=s)[0]) for s in (slots, changed))
    differs = np.abs(first - second).max(axis=(0, 2)) > 0
    np.testing.assert_array_equal(np.flatnonzero(differs), [8])


def assert_same_state(got, wanted):
    np.testing.assert_array_equal(got.window.length, wanted.window.length)
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert_close(one, other, 1e-5)


@pytest.mark.parametrize("kernel", [3, None])
@pytest.mark.parametrize("cuts", [range(1, 19), [2, 3, 11], [9]])
def test_in_parts_equals_the_whole_row(cuts, kernel):
    """Padding on the left, a row without events, ends at different times."""
    made, _ = layer(kernel=kernel)
    x, slots = random_inputs()
    ids = np.where(LAYOUT > 0, 1, 0)
    ids[0, 7:10] = 1  # one history per row
    whole, last = apply(made, x, ids, slots=slots)
    state, parts = None, []
    for start, end in zip([0, *cuts], [*cuts, ids.shape[1]], strict=True):
        part = slice(start, end)
        output, state = apply(made, x[:, part], ids[:, part], state, slots[:, part])
        parts.append(output)
    assert_close(np.concatenate(parts, axis=1), whole, 1e-5)
    assert_same_state(state, last)


def test_the_state_is_of_the_rows_last_segment_and_goes_on_into_the_first():
    made, _ = layer()
    x, slots = random_inputs()
    ids = np.array([[1] * 9 + [2] * 10] * len(LAYOUT), np.int32)
    _, past = apply(made, x[:, :4], np.ones_like(ids[:, :4]), slots=slots[:, :4])
    output, after = apply(made, x, ids, past, slots)
    joined = (
        np.concatenate([x[:, :4], x[:, :9]], axis=1),
        np.concatenate([slots[:, :4], slots[:, :9]], axis=1),
    )
    first, _ = apply(made, joined[0], np.ones((len(x), 13), np.int32), slots=joined[1])
    second, alone = apply(made, x[:, 9:], ids[:, 9:], slots=slots[:, 9:])
    assert_close(output, np.concatenate([first[:, 4:], second], axis=1), 1e-5)
    assert_same_state(after, alone)


def test_memory_grows_linearly_with_time():
    made, _ = layer(window=16)
    graphdef, params = nnx.split(made)
    lengths, bytes_ = [2**11, 2**14], []
    for time in lengths:
        shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.float32)  # noqa: E731
        ids = jax.ShapeDtypeStruct((1, time), jnp.int32)

        def loss(params, x, slots, ids):
            output, _ = nnx.merge(graphdef, params)(x, ids, made.initial_state(1), slots=slots)
            return jnp.sum(output**2)

        inputs = params, shape(1, time, WIDTH), shape(1, time, SLOTS, SLOT_WIDTH), ids
        compiled = jax.jit(jax.grad(loss)).lower(*inputs).compile()
        bytes_.append(compiled.memory_analysis().temp_size_in_bytes)
    assert np.polyfit(np.log(lengths), np.log(bytes_), 1)[0] < 1.05
