"""The Triton form by the tests of the other forms, interpreted on a CPU and run on a GPU.

Those rows are shorter than a chunk; the tests of this file are about several chunks.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linseqrec.ops.kernels import triton_choice, triton_launch
from linseqrec.ops.softmax_attention import softmax_attention
from tests.ops import test_softmax_attention as forms
from tests.ops.closeness import assert_close, projected
from tests.ops.kernels import triton_interpreter
from tests.ops.layouts import LAYOUT

ON_GPU = jax.default_backend() == "gpu"
if not ON_GPU and triton_interpreter.why_not():
    pytest.skip(triton_interpreter.why_not(), allow_module_level=True)
pytestmark = [pytest.mark.gpu] if ON_GPU else []

ALL = ("triton", 64, None)
WINDOW = ("triton", 64, 3)
BEHIND = ("triton", 64, 3, 2)


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    """Has Triton's interpreter run the kernels where there is no GPU."""
    if not ON_GPU:
        monkeypatch.setattr(triton_choice, "_PACKAGES", ("triton",))
        monkeypatch.setattr(triton_launch, "launch", triton_interpreter.launch)


@pytest.mark.parametrize("form", [ALL, WINDOW, BEHIND], ids=["all", "window", "behind"])
@pytest.mark.parametrize(
    "test",
    [
        forms.test_equals_the_definition_whatever_the_segments,
        forms.test_gradients_and_nothing_from_padding,
        forms.test_bfloat16,
        forms.test_nothing_reads_the_future_nor_beyond_the_window,
    ],
    ids=lambda test: test.__name__,
)
def test_as_the_other_forms(monkeypatch, test, form):
    monkeypatch.setattr(forms, "fading_inputs", forms.random_inputs)
    test(form=form)


@pytest.mark.parametrize("form", [ALL, WINDOW], ids=["all", "window"])
def test_packing_vmap_shard_map_and_past_as_the_other_forms(form):
    forms.test_packed_row_equals_its_parts_in_any_order_and_padding(form)
    forms.test_under_vmap_and_shard_map(form)
    forms.test_queries_of_the_last_slots_read_as_in_the_whole_row(form, 4)
    forms.test_equals_the_definition_without_segments(form, 9)


def long_inputs(time, past, dtype=np.float32, widths=(5, 7)):
    """Two heads of random numbers, and segments of which some reach over several chunks."""
    random = np.random.default_rng(0)
    key, value = widths
    draw = lambda time, width: random.normal(size=(2, time, 2, width))  # noqa: E731
    total = time + past
    inputs = {"query": draw(time, key), "key": draw(total, key), "value": draw(total, value)}
    ids = 1 + np.cumsum(random.random((2, total)) < 4 / total, axis=1).astype(np.int32)
    ids[random.random((2, total)) < 0.1] = 0
    ids[0, 70:134] = 0
    return {name: jnp.asarray(array, dtype) for name, array in inputs.items()}, ids


def both(implementation, inputs, segment_ids, **options):
    """The output and its gradients with respect to the inputs."""

    @jax.jit
    def run(inputs):
        def loss(inputs):
            output = softmax_attention(
                **inputs, segment_ids=segment_ids, implementation=implementation, **options
            )
            return projected(output), output

        slopes, output = jax.grad(loss, has_aux=True)(inputs)
        return output, slopes

    return run(inputs)


def assert_exact(inputs, segment_ids, tolerance, **options):
    """Output and gradients are those of all scores at once in float64."""
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: np.asarray(x, np.float64), inputs)
        expected = jax.tree.map(np.asarray, both("blockwise", wide, segment_ids, **options))
    actual = both("triton", inputs, segment_ids, **options)
    for got, wanted in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        assert_close(got, wanted, tolerance)


@pytest.mark.parametrize(
    "options",
    [{}, {"window": 2}, {"window": 65}, {"window": 70, "behind": 40}, {"behind": 64}],
    ids=["all", "window 2", "window 65", "window 70 behind 40", "behind 64"],
)
@pytest.mark.parametrize(("time", "past"), [(63, 0), (128, 0), (130, 0), (70, 90)])
def test_rows_of_several_chunks(time, past, options):
    inputs, ids = long_inputs(time, past)
    assert_exact(inputs, ids, 1e-5, **options)


@pytest.mark.parametrize("options", [{}, {"window": 20}], ids=["all", "window"])
def test_rows_without_segments(options):
    inputs, _ = long_inputs(130, 0)
    assert_exact(inputs, None, 1e-5, **options)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("widths", [(64, 128), (128, 33), (32, 32)])
def test_any_width_up_to_128(widths, dtype):
    inputs, ids = long_inputs(70, 0, dtype, widths)
    assert softmax_attention(**inputs, implementation="triton").dtype == dtype
    assert_exact(inputs, ids, 1e-2 if dtype == jnp.bfloat16 else 1e-5, scale=0.3)


def test_scores_too_large_for_an_exponential():
    """A running maximum that grows from chunk to chunk."""
    inputs, ids = long_inputs(200, 0)
    inputs["key"] = inputs["key"] * jnp.linspace(1, 200, 200)[:, None, None]
    assert_exact(inputs, ids, 1e-5)


def test_no_program_reads_beyond_its_window_and_segment():
    """Chunks that no query of a program sees hold NaN, and leave no trace."""
    inputs, _ = long_inputs(256, 0)
    ids = np.repeat(np.array([1, 2, 3, 4], np.int32), 64)[None].repeat(2, axis=0)
    poisoned = inputs | {name: inputs[name].at[:, 64:128].set(jnp.nan) for name in ("key", "value")}
    attend = partial(softmax_attention, implementation="triton")
    clean, found = attend(**inputs, segment_ids=ids), attend(**poisoned, segment_ids=ids)
    others = np.r_[0:64, 128:256]
    np.testing.assert_array_equal(found[:, others], clean[:, others])
    clean, found = attend(**inputs, window=64), attend(**poisoned, window=64)
    np.testing.assert_array_equal(found[:, 192:], clean[:, 192:])


def test_gradients_under_vmap_shard_map_and_remat():
    inputs = forms.random_inputs()
    expected = forms.gradients(WINDOW, inputs, LAYOUT)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.PartitionSpec("data")

    def loss(inputs):
        run = jax.shard_map(partial(forms.apply, WINDOW), mesh=mesh, in_specs=rows, out_specs=rows)
        return forms.weighted(jax.checkpoint(run)(inputs, LAYOUT))

    found = jax.jit(jax.grad(loss))(inputs)
    double = jax.tree.map(lambda x: np.stack([x, x]), inputs)
    mapped = jax.vmap(partial(forms.gradients, WINDOW), (0, None))(double, LAYOUT)
    for name, gradient in expected.items():
        assert_close(found[name], gradient, 2e-6)
        for index in range(2):
            assert_close(mapped[name][index], gradient, 2e-6)
