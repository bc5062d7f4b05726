"""The Triton form against the definition in float64, interpreted on a CPU and run on a GPU.

The cases are those of `test_gated_delta_rule`, fewer and smaller: the interpreter takes half a
second for a chunk.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linseqrec.ops.kernels import triton_choice, triton_launch
from tests.ops.closeness import relative_rms
from tests.ops.kernels import triton_interpreter
from tests.ops.layouts import LAYOUT
from tests.ops.test_gated_delta_rule import (
    apply,
    apply_and_differentiate,
    assert_a_horizon_learns_from_small_gaps,
    assert_all_close,
    assert_same_in_shard_map_and_remat,
    by_loops,
    expected_of,
    make,
)

TRITON = ("triton", 64)
ON_GPU = jax.default_backend() == "gpu"
if not ON_GPU and triton_interpreter.why_not():
    pytest.skip(triton_interpreter.why_not(), allow_module_level=True)
pytestmark = [pytest.mark.gpu] if ON_GPU else []


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    """Has Triton's interpreter run the kernels where there is no GPU."""
    if not ON_GPU:
        monkeypatch.setattr(triton_choice, "_PACKAGES", ("triton",))
        monkeypatch.setattr(triton_launch, "launch", triton_interpreter.launch)


def segments(batch, time, *, seed=0):
    """Segments of about 20 slots with padding between and within them."""
    random = np.random.default_rng(seed)
    ids = 1 + np.cumsum(random.random((batch, time)) < 0.05, axis=1).astype(np.int32)
    ids[random.random((batch, time)) < 0.2] = 0
    return ids


@pytest.mark.parametrize("keys", ["random", "duplicates", "cosine .8", "cosine .99"])
@pytest.mark.parametrize(("decay", "beta"), [(0, 1.9), (-0.1, 1), (-20, 1.9), ("gaps", 1)])
def test_exact_on_the_keys_that_histories_have(keys, decay, beta):
    inputs, state = make(1, 70, keys=keys, decay=decay, beta=beta, heads=1)
    outputs, slopes = expected_of(inputs, None, state)
    worst = "cosine" in keys and decay == 0 and beta == 1.9
    actual, actual_slopes = apply_and_differentiate(TRITON, inputs, None, state)
    assert_all_close(actual, outputs, 1e-5 if worst else 2e-6)
    # Absolutely only where there is nothing: strong decays leave small gradients, and exact ones.
    assert_all_close(actual_slopes, slopes, 1e-5, absolute=1e-12)


def test_exact_on_identical_keys():
    inputs, state = make(1, 150, keys="identical", decay=-0.1, beta=1.9, heads=1)
    outputs, slopes = expected_of(inputs, None, state)
    actual, actual_slopes = apply_and_differentiate(TRITON, inputs, None, state)
    assert_all_close(actual, outputs, 1e-5)
    assert_all_close(actual_slopes, slopes, 5e-5)


@pytest.mark.parametrize("keys", ["random", "duplicates", "cosine .8", "cosine .99"])
@pytest.mark.parametrize(("decay", "beta"), [(0, 1.9), (-0.1, 1), ("gaps", 1)])
def test_bfloat16_inputs(keys, decay, beta):
    """The kernels round to bfloat16 what they multiply; the updates of keys alike cancel."""
    inputs, state = make(1, 150, keys=keys, decay=decay, beta=beta, heads=1)
    for name in ("q", "k", "v"):
        inputs[name] = jnp.asarray(inputs[name], jnp.bfloat16)
    outputs, slopes = expected_of(inputs, None, state)
    actual, actual_slopes = apply_and_differentiate(TRITON, inputs, None, state)
    assert actual[0].dtype == jnp.bfloat16 and actual[1].dtype == jnp.float32
    factor = 4 if decay == 0 or "cosine" in keys else 1
    assert_all_close(actual, outputs, 5e-3 * factor)
    assert_all_close(actual_slopes, slopes, 1e-2 * factor)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("widths", [(64, 128), (128, 33), (7, 64)])
def test_any_width_up_to_128(widths, dtype):
    inputs, state = make(1, 66, widths=widths, heads=1)
    for name in ("q", "k", "v"):
        inputs[name] = jnp.asarray(inputs[name], dtype)
    outputs, slopes = expected_of(inputs, None, state)
    actual, actual_slopes = apply_and_differentiate(TRITON, inputs, None, state)
    narrow = dtype == jnp.bfloat16
    assert_all_close(actual, outputs, 5e-3 if narrow else 2e-6)
    assert_all_close(actual_slopes, slopes, 1e-2 if narrow else 1e-5)


def test_a_horizon_learns_from_small_gaps_between_large_ones():
    assert_a_horizon_learns_from_small_gaps(TRITON, heads=1)


@pytest.mark.parametrize("time", [1, 2, 63, 64, 65])
def test_any_length(time):
    inputs, state = make(2, time, keys="duplicates", decay="gaps", heads=1)
    assert_all_close(apply(TRITON, inputs, None, state), by_loops(inputs, None, state), 2e-6)


@pytest.mark.parametrize("segment_ids", [LAYOUT, segments(2, 150)], ids=["layout", "long"])
def test_segments_and_nothing_from_padding(segment_ids):
    inputs, state = make(*segment_ids.shape, heads=1)
    outputs = by_loops(inputs, segment_ids, state)
    _, slopes = expected_of(inputs, segment_ids, state)
    padding = segment_ids == 0
    for array in inputs.values():
        bad = np.where(np.arange(padding.sum()) % 2, np.nan, np.inf)
        array[padding] = bad.reshape(-1, *(1,) * (array.ndim - 2))
    actual, actual_slopes = apply_and_differentiate(TRITON, inputs, segment_ids, state)
    assert_all_close(actual, outputs, 2e-6)
    assert_all_close(actual_slopes, slopes, 1e-5)
    for array in (actual[0], *actual_slopes[0].values()):
        assert np.all(np.asarray(array)[padding] == 0)
    empty = ~segment_ids.any(1)
    np.testing.assert_array_equal(np.asarray(actual[1])[empty], state[empty])


def test_forgetting_everything_is_a_fresh_start():
    inputs, state = make(1, 70, heads=1)
    inputs["log_decay"][:, [4, 9, 10, 63, 64]] = -np.inf
    outputs = by_loops(inputs, None, state)
    _, slopes = expected_of(inputs, None, state)
    actual, actual_slopes = apply_and_differentiate(TRITON, inputs, None, state)
    assert_all_close(actual, outputs, 2e-6)
    assert_all_close(actual_slopes, slopes, 1e-5)
    assert np.all(np.asarray(actual_slopes[0]["log_decay"])[:, [4, 9, 10, 63, 64]] == 0)


def test_nothing_reads_the_future():
    inputs, state = make(1, 70, heads=1)
    before, _ = apply(TRITON, inputs, None, state)
    for t in (1, 17, 40, 64, 69):
        changed = {name: array.copy() for name, array in inputs.items()}
        for array in changed.values():
            array[:, t:] *= 0.7
        after, _ = apply(TRITON, changed, None, state)
        np.testing.assert_array_equal(after[:, :t], before[:, :t])
        assert np.all(np.any(after[:, t] != before[:, t], axis=-1))


def test_split_anywhere_and_carried_on_equals_one_shot():
    inputs, start = make(1, 130, heads=1)
    output, final = apply(TRITON, inputs, None, start)
    for cut in (1, 64, 65, 100):
        head, state = apply(TRITON, {n: x[:, :cut] for n, x in inputs.items()}, None, start)
        tail, state = apply(TRITON, {n: x[:, cut:] for n, x in inputs.items()}, None, state)
        assert relative_rms(np.concatenate([head, tail], axis=1), output) < 2e-6
        assert relative_rms(state, final) < 2e-6


def test_no_initial_state_is_zeros_and_gates_may_be_narrow():
    inputs, state = make(1, 20, heads=1)
    for name in ("log_decay", "beta"):
        inputs[name] = jnp.asarray(inputs[name], jnp.bfloat16)
    outputs = by_loops(inputs)
    assert_all_close(apply(TRITON, inputs), outputs, 2e-6)
    _, (slopes, _) = apply_and_differentiate(TRITON, inputs, None, 0 * state)
    _, (expected, _) = expected_of(inputs, None, 0 * state)
    assert slopes["beta"].dtype == slopes["log_decay"].dtype == jnp.bfloat16
    assert_all_close(slopes, expected, 5e-3)


def test_under_vmap_shard_map_and_remat():
    layout = LAYOUT[:2]
    inputs, state = make(*layout.shape, heads=1)
    arguments = inputs, layout, state
    expected = apply_and_differentiate(TRITON, *arguments)
    assert_same_in_shard_map_and_remat(TRITON, arguments, expected)
    # A mapped input beside one that is not: the ids are shared.
    twice = jax.tree.map(lambda x: np.stack([x, 0.5 * x]), (inputs, state))
    mapped = jax.vmap(partial(apply_and_differentiate, TRITON), (0, None, 0))
    actual = mapped(twice[0], layout, twice[1])
    for index in range(2):
        one = jax.tree.map(lambda x, index=index: x[index], twice)
        alone = apply_and_differentiate(TRITON, one[0], layout, one[1])
        assert_all_close(jax.tree.map(lambda x, index=index: x[index], actual), alone, 1e-6)
