import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings

from linseqrec.ops.convolution import short_convolution
from tests.ops.closeness import assert_close
from tests.ops.layouts import LAYOUT, segment_layouts

TAPS, WIDTH = 4, 6
ROWS, SLOTS = LAYOUT.shape
convolve = jax.jit(short_convolution)


def random_array(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def random_arguments(batch=ROWS, time=SLOTS, taps=TAPS):
    return {
        "x": random_array(batch, time, WIDTH),
        "weight": random_array(taps, WIDTH, seed=1),
        "bias": random_array(WIDTH, seed=2),
        "state": random_array(batch, taps - 1, WIDTH, seed=3),
    }


def by_loops(x, weight, bias, state, segment_ids=None):
    """The definition, event by event in float64: a segment is a list, its past at the front."""
    x, weight, bias, state = (np.asarray(a, np.float64) for a in (x, weight, bias, state))
    if segment_ids is None:
        segment_ids = np.ones(x.shape[:2], int)
    taps = len(weight)
    y, final = np.zeros(x.shape), state.copy()
    for b, ids in enumerate(segment_ids):
        seen, current = list(state[b]), None
        for t in np.flatnonzero(ids):
            if current not in (None, ids[t]):
                seen = [np.zeros(x.shape[-1])] * (taps - 1)
            current = ids[t]
            seen.append(x[b, t])
            y[b, t] = bias + sum(w * s for w, s in zip(weight, seen[-taps:], strict=True))
        final[b] = np.reshape(seen[len(seen) - (taps - 1) :], final[b].shape)
    return y, final


@settings(max_examples=50, deadline=None)
@given(segment_ids=segment_layouts(ROWS, SLOTS))
@example(segment_ids=LAYOUT)
def test_equals_the_definition_whatever_the_segments(segment_ids):
    arguments = random_arguments()
    y, state = convolve(**arguments, segment_ids=segment_ids)
    expected, expected_state = by_loops(**arguments, segment_ids=segment_ids)
    assert_close(y, expected, 1e-6)
    assert np.all(np.asarray(y)[segment_ids == 0] == 0)
    np.testing.assert_array_equal(state, expected_state.astype(np.float32))


@pytest.mark.parametrize(("time", "taps"), [(1, 1), (1, 4), (2, 4), (3, 4), (9, 1), (9, 2), (4, 5)])
@pytest.mark.parametrize("segments", [False, True])
def test_short_rows_and_other_numbers_of_taps(time, taps, segments):
    arguments = random_arguments(2, time, taps)
    segment_ids = np.ones((2, time), np.int32) if segments else None
    y, state = convolve(**arguments, segment_ids=segment_ids)
    expected, expected_state = by_loops(**arguments)
    assert_close(y, expected, 1e-6)
    np.testing.assert_array_equal(state, expected_state.astype(np.float32))


def test_no_bias_and_no_state_are_zeros():
    arguments = random_arguments()
    for segment_ids in (None, LAYOUT):
        zeros = arguments | {"bias": np.zeros(WIDTH), "state": np.zeros((ROWS, TAPS - 1, WIDTH))}
        expected = by_loops(**zeros, segment_ids=segment_ids)
        actual = convolve(arguments["x"], arguments["weight"], segment_ids=segment_ids)
        for got, wanted in zip(actual, expected, strict=True):
            assert_close(got, wanted, 1e-6)


def by_matrix(x, weight, bias, state, segment_ids):
    """The definition as a [T, T] matrix per tap, to differentiate in float64."""
    real = segment_ids > 0
    first = (np.cumsum(real, 1) > 0) & (
        segment_ids == segment_ids[np.arange(ROWS), real.argmax(1)][:, None]
    )
    order = np.where(real, np.cumsum(real, 1), 0)
    y = bias * real[..., None]
    x = jnp.where(real[..., None], x, 0)
    for back in range(TAPS):
        same = (segment_ids[:, :, None] == segment_ids[:, None, :]) & real[:, :, None]
        hit = same & (order[:, :, None] - order[:, None, :] == back)
        y = y + weight[TAPS - 1 - back] * jnp.einsum("bts,bsd->btd", hit.astype(float), x)
        for slot in range(TAPS - 1):  # the state's inputs are events number 2 - TAPS to 0
            hit = first & real & (order - (slot + 2 - TAPS) == back)
            y = y + hit[..., None] * weight[TAPS - 1 - back] * state[:, None, slot]
    return y


def test_gradients_and_nothing_from_padding():
    arguments, weights = random_arguments(), random_array(ROWS, SLOTS, WIDTH, seed=9)
    expected, _ = by_loops(**arguments, segment_ids=LAYOUT)
    with jax.enable_x64(True):
        wide = {name: np.asarray(array, np.float64) for name, array in arguments.items()}
        assert_close(by_matrix(**wide, segment_ids=LAYOUT), expected, 1e-13)
        of = jax.grad(
            lambda arguments: jnp.sum(weights * by_matrix(**arguments, segment_ids=LAYOUT))
        )
        expected = jax.tree.map(np.asarray, jax.jit(of)(wide))
    padding = LAYOUT == 0
    arguments["x"][padding] = np.where(np.arange(padding.sum()) % 2, np.nan, np.inf)[:, None]
    y, state = convolve(**arguments, segment_ids=LAYOUT)
    assert np.all(np.asarray(y)[padding] == 0) and np.all(np.isfinite(state))

    def loss(arguments):
        return jnp.sum(weights * short_convolution(**arguments, segment_ids=LAYOUT)[0])

    actual = jax.jit(jax.grad(loss))(arguments)
    assert np.all(np.asarray(actual["x"])[padding] == 0)
    for name, wanted in expected.items():
        assert_close(actual[name], wanted, 2e-6)


def test_gradient_through_the_state():
    """What the state adds to later outputs is what the same events in one row would have added."""
    x, weight = random_array(1, 9, WIDTH), random_array(TAPS, WIDTH, seed=1)
    weights = random_array(1, 9, WIDTH, seed=9)

    @jax.jit
    @jax.grad
    def in_two_calls(x, earlier):
        head, state = short_convolution(x, weight, segment_ids=jnp.where(earlier, 1, 0))
        tail, _ = short_convolution(x, weight, segment_ids=jnp.where(earlier, 0, 1), state=state)
        return jnp.sum(weights * (head + tail))

    whole = jax.grad(lambda x: jnp.sum(weights * short_convolution(x, weight)[0]))(x)
    for cut in range(10):
        assert_close(in_two_calls(x, np.arange(9)[None] < cut), whole, 1e-6)


def test_nothing_reads_the_future():
    arguments = random_arguments()
    before, _ = convolve(**arguments)
    for t in range(1, SLOTS):
        x = arguments["x"].copy()
        x[:, t:] += 1
        after, _ = convolve(**(arguments | {"x": x}))
        np.testing.assert_array_equal(after[:, :t], before[:, :t])
        assert np.all(after[:, t] != before[:, t])


def test_packed_row_equals_its_parts_in_any_order_and_padding():
    x, weight = random_array(1, SLOTS, WIDTH), random_array(TAPS, WIDTH, seed=1)
    parts = [slice(0, 4), slice(4, 5), slice(5, 12), slice(12, 14)]
    for order, gaps in [([0, 1, 2, 3], [0, 0, 0, 0]), ([2, 0, 3, 1], [3, 0, 1, 1])]:
        row, segment_ids, at, places = np.full_like(x, np.nan), np.zeros((1, SLOTS), int), 0, {}
        for part, gap in zip(order, gaps, strict=True):
            length = parts[part].stop - parts[part].start
            places[part] = slice(at + gap, at + gap + length)
            row[:, places[part]], segment_ids[:, places[part]] = x[:, parts[part]], part + 1
            at += gap + length
        y, _ = convolve(row, weight, segment_ids=segment_ids)
        for part, place in places.items():
            zeros = np.zeros(WIDTH), np.zeros((1, TAPS - 1, WIDTH))
            alone, _ = by_loops(x[:, parts[part]], weight, *zeros)
            assert_close(y[:, place], alone, 1e-6)


def test_split_anywhere_and_carried_on_equals_one_shot():
    """The first call has padding for what comes later, the second for what came before."""
    arguments = random_arguments()
    segment_ids = (LAYOUT.max(1, keepdims=True) == LAYOUT) * LAYOUT  # one segment a row
    whole, final = convolve(**arguments, segment_ids=segment_ids)
    for cut in range(SLOTS + 1):
        earlier = np.arange(SLOTS) < cut
        head, state = convolve(**arguments, segment_ids=segment_ids * earlier)
        rest = arguments | {"state": state}
        tail, state = convolve(**rest, segment_ids=segment_ids * ~earlier)
        np.testing.assert_array_equal(head + tail, whole)
        np.testing.assert_array_equal(state, final)


def test_serving_an_event_at_a_time_equals_training():
    arguments = random_arguments()
    whole, final = convolve(**arguments)
    state, steps = arguments["state"], []
    for t in range(SLOTS):
        step, state = convolve(**(arguments | {"x": arguments["x"][:, t : t + 1], "state": state}))
        steps.append(step)
    assert_close(np.concatenate(steps, axis=1), whole, 1e-6)
    np.testing.assert_array_equal(state, final)


def test_bfloat16():
    """Accumulated in float32: only the output is rounded. The state is exact."""
    arguments = random_arguments() | {"x": jnp.asarray(random_arguments()["x"], jnp.bfloat16)}
    y, state = convolve(**arguments, segment_ids=LAYOUT)
    assert y.dtype == jnp.bfloat16 and state.dtype == np.float32
    rounded = arguments | {"x": arguments["x"].astype(np.float32)}
    expected, expected_state = by_loops(**rounded, segment_ids=LAYOUT)
    assert_close(y, expected, 4e-3)
    np.testing.assert_array_equal(state, expected_state.astype(np.float32))


def test_vmap_and_shard_map():
    arguments = random_arguments()
    weight, bias = arguments["weight"], arguments["bias"]
    expected = convolve(**arguments, segment_ids=LAYOUT)
    rows = arguments["x"], LAYOUT, arguments["state"]

    def of(x, ids, state):
        return short_convolution(x, weight, bias, segment_ids=ids, state=state)

    mapped = jax.vmap(of)(*(np.stack([array, array]) for array in rows))
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((1,), ("data",), axis_types=auto, devices=jax.devices()[:1])
    data = jax.sharding.PartitionSpec("data")
    sharded = jax.shard_map(of, mesh=mesh, in_specs=data, out_specs=data)(*rows)
    for wanted, in_map, in_shards in zip(expected, mapped, sharded, strict=True):
        assert_close(in_map, np.stack([wanted, wanted]), 1e-6)
        assert_close(in_shards, wanted, 1e-6)


@pytest.mark.usefixtures("without_type_checks")
def test_refuses_what_does_not_fit():
    arguments = random_arguments()
    with pytest.raises(ValueError, match="weight"):
        short_convolution(arguments["x"], arguments["weight"][:, :3])
    for name, wrong in [
        ("bias", np.zeros(WIDTH + 1)),
        ("state", np.zeros((ROWS, TAPS, WIDTH))),
        ("segment_ids", LAYOUT[:, 1:]),
    ]:
        with pytest.raises(ValueError, match=name):
            short_convolution(**(arguments | {name: wrong}))
