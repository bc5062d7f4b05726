"""The Triton form by the tests of the other forms, interpreted on a CPU and run on a GPU.

Those rows are shorter than a chunk; the tests of this file are about chunks and parts of rows.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linseqrec.ops.kernels import linear_attention_triton, triton_choice, triton_launch
from linseqrec.ops.linear_attention import LinearAttentionState, linear_attention
from tests.ops import test_linear_attention as forms
from tests.ops.closeness import assert_close, projected
from tests.ops.kernels import triton_interpreter
from tests.ops.layouts import LAYOUT

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


@pytest.mark.parametrize(
    "test",
    [
        forms.test_equals_the_definition_whatever_the_segments,
        forms.test_epsilon_may_be_one_number_a_reading,
        forms.test_gradients_and_nothing_from_padding,
        forms.test_bfloat16,
        forms.test_nothing_reads_the_future,
        forms.test_packed_row_equals_its_parts_in_any_order_and_padding,
        forms.test_split_anywhere_and_carried_on_equals_one_shot,
        forms.test_under_vmap_and_shard_map,
    ],
    ids=lambda test: test.__name__,
)
def test_as_the_other_forms(test):
    test(form=TRITON)


@pytest.mark.parametrize(("time", "separate"), [(1, True), (20, False)])
def test_without_segments(time, separate):
    forms.test_equals_the_definition_without_segments(TRITON, time, separate)


def long_inputs(batch, time, dtype=np.float32, *, heads=1, widths=(5, 7, 3), separate=True):
    """Features of which some are negative, their initial state, and segments with padding."""
    random = np.random.default_rng(0)
    key, value, denominator = widths
    draw = lambda width: random.normal(size=(batch, time, heads, width))  # noqa: E731
    inputs = {"query": draw(key), "key": draw(key), "value": draw(value)}
    if separate:
        for name in ("denominator_query", "denominator_key"):
            inputs[name] = np.exp(draw(denominator))
    else:
        inputs |= {name: np.exp(inputs[name]) for name in ("query", "key")}
        denominator = key
    state = LinearAttentionState(
        random.normal(size=(batch, heads, key, value)),
        np.exp(random.normal(size=(batch, heads, denominator))),
    )
    ids = 1 + np.cumsum(random.random((batch, time)) < 5 / time, axis=1).astype(np.int32)
    ids[random.random((batch, time)) < 0.2] = 0
    inputs = {name: jnp.asarray(array, dtype) for name, array in inputs.items()}
    return inputs, jax.tree.map(np.float32, state), ids


def both(implementation, inputs, segment_ids, state):
    """The outputs and their gradients with respect to inputs and state."""

    @jax.jit
    def run(inputs, state):
        def loss(inputs, state):
            outputs = linear_attention(
                **inputs,
                segment_ids=segment_ids,
                initial_state=state,
                implementation=implementation,
                epsilon=forms.EPSILON,
            )
            return projected(outputs), outputs

        slopes, outputs = jax.grad(loss, (0, 1), has_aux=True)(inputs, state)
        return outputs, slopes

    return run(inputs, state)


def exact(inputs, segment_ids, state):
    """The same by the recurrence in float64."""
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: np.asarray(x, np.float64), (inputs, state))
        return jax.tree.map(np.asarray, both("recurrent", wide[0], segment_ids, wide[1]))


def assert_all_close(actual, expected, tolerance):
    for got, wanted in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        assert_close(got, wanted, tolerance)


@pytest.mark.parametrize("in_segments", [False, True], ids=["one segment", "segments"])
@pytest.mark.parametrize("time", [31, 32, 33, 130])
def test_rows_of_several_chunks_and_parts(monkeypatch, time, in_segments):
    monkeypatch.setattr(linear_attention_triton, "_FEWEST_CHUNKS", 2)
    inputs, state, ids = long_inputs(2, time)
    arguments = inputs, ids if in_segments else None, state
    assert_all_close(both("triton", *arguments), exact(*arguments), 1e-5)


def test_a_segment_over_several_parts_and_parts_of_many_segments(monkeypatch):
    """In the first row one segment reaches from the first part into the last."""
    monkeypatch.setattr(linear_attention_triton, "_FEWEST_CHUNKS", 2)
    inputs, state, ids = long_inputs(2, 200)
    ids[0] = np.where(np.arange(200) < 30, 4, np.where(np.arange(200) < 170, 2, 9))
    assert_all_close(both("triton", inputs, ids, state), exact(inputs, ids, state), 1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("widths", [(64, 128, 32), (128, 33, 128), (7, 64, 64)])
def test_any_width_up_to_128(widths, dtype):
    inputs, state, _ = long_inputs(1, 66, dtype, widths=widths)
    actual, expected = both("triton", inputs, None, state), exact(inputs, None, state)
    assert actual[0][0].dtype == dtype
    assert_all_close(actual, expected, 1e-2 if dtype == jnp.bfloat16 else 1e-5)


@pytest.mark.parametrize("separate", [True, False])
def test_bfloat16_over_several_chunks(monkeypatch, separate):
    monkeypatch.setattr(linear_attention_triton, "_FEWEST_CHUNKS", 1)
    inputs, state, ids = long_inputs(1, 200, jnp.bfloat16, separate=separate)
    actual, expected = both("triton", inputs, ids, state), exact(inputs, ids, state)
    assert_all_close(actual[0][1], expected[0][1], 1e-5)
    # Gradients of features that the numerator and the denominator share cancel: "chunked" misses
    # them by 1.3e-2.
    assert_all_close(actual, expected, 1e-2 if separate else 2e-2)


def test_no_initial_state_is_zeros_and_no_epsilon_divides_by_the_sum_alone():
    inputs, state, ids = long_inputs(1, 70, separate=False)
    run = partial(linear_attention, **inputs, segment_ids=ids, epsilon=0.0)
    expected = run(initial_state=jax.tree.map(np.zeros_like, state), implementation="recurrent")
    assert_all_close(run(implementation="triton"), expected, 1e-5)


def test_gradients_under_vmap_shard_map_and_remat():
    inputs, state = forms.random_inputs(*LAYOUT.shape), forms.random_state(len(LAYOUT))
    expected = forms.gradients(TRITON, inputs, LAYOUT, state)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.PartitionSpec("data")

    def loss(inputs, state):
        run = jax.shard_map(partial(forms.apply, TRITON), mesh=mesh, in_specs=rows, out_specs=rows)
        return projected(jax.checkpoint(run)(inputs, LAYOUT, state))

    assert_all_close(jax.jit(jax.grad(loss, (0, 1)))(inputs, state), expected, 2e-6)
    # Mapped inputs beside ids that are not.
    double = jax.tree.map(lambda x: np.stack([x, x]), (inputs, state))
    mapped = jax.vmap(partial(forms.gradients, TRITON), (0, None, 0))(double[0], LAYOUT, double[1])
    for index in range(2):
        one = jax.tree.map(lambda x, index=index: x[index], mapped)
        assert_all_close(one, expected, 2e-6)
