"""The running mean against NumPy's, segment by segment."""

import jax
import numpy as np
import pytest

from linseqrec.ops.kernels import triton_choice
from linseqrec.ops.running_mean import running_mean
from tests.models.reference import jit
from tests.ops.layouts import LAYOUT

run = jit(lambda x, ids, state: running_mean(x, segment_ids=ids, initial_state=state))


def by_loops(x, ids):
    means = np.zeros(x.shape)
    for b in range(len(ids)):
        for t in np.flatnonzero(ids[b]):
            seen = (ids[b] == ids[b, t]) & (np.arange(len(ids[b])) <= t)
            means[b, t] = x[b, seen].astype(np.float64).mean(axis=0)
    return means


@pytest.mark.parametrize("far", [0.0, 1e6])
def test_equals_the_mean_of_each_segment(far):
    """A segment of huge numbers before others leaves no rounding behind in them."""
    x = np.random.default_rng(0).normal(size=(*LAYOUT.shape, 3)).astype(np.float32)
    x[LAYOUT == 7] += far
    mean, _ = run(x, LAYOUT, None)
    others = LAYOUT != 7
    np.testing.assert_allclose(np.asarray(mean)[others], by_loops(x, LAYOUT)[others], atol=1e-6)
    np.testing.assert_allclose(mean, by_loops(x, LAYOUT), rtol=1e-6, atol=1e-6)


def test_goes_on_from_its_state():
    x = np.random.default_rng(0).normal(size=(2, 90, 3)).astype(np.float32)
    ids = np.ones((2, 90), np.int32)
    whole, final = run(x, ids, None)
    state, parts = None, []
    for part in (slice(0, 1), slice(1, 71), slice(71, 90)):
        mean, state = run(x[:, part], ids[:, part], state)
        parts.append(mean)
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, atol=1e-6)
    np.testing.assert_allclose(state.key_value, final.key_value, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(state.key_sum, 90)


def test_leaves_triton_alone(monkeypatch):
    """Where linear attention of such inputs would run its kernels."""
    monkeypatch.setattr(triton_choice, "_PACKAGES", ())
    monkeypatch.setenv("LINSEQREC_TRITON", "1")
    monkeypatch.setattr(triton_choice, "rows_apart", lambda x: lambda function: function)
    x, ids = np.ones((2, 9, 3), np.float32), np.ones((2, 9), np.int32)
    program = jax.make_jaxpr(lambda x, ids: running_mean(x, segment_ids=ids))(x, ids)
    assert "triton" not in str(program)
