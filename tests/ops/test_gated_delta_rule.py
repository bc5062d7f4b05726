"""The gated delta rule against its definition in float64, tolerances by relative RMS."""

import types
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from linseqrec.ops import gated_delta_rule as rule
from linseqrec.ops.gated_delta_rule import gated_delta_rule
from linseqrec.ops.kernels import gated_delta_rule_triton, triton_choice
from linseqrec.ops.segments import Cut
from tests.ops.closeness import assert_close, projected, relative_rms
from tests.ops.layouts import LAYOUT, packed, segment_layouts

HEADS, KEY, VALUE = 2, 32, 24
NAMES = ("q", "k", "v", "log_decay", "beta")

# None of these sizes divides 150 slots: their chunks have 15, 30, 50 and 75.
FORMS = [
    ("recurrent", 64),
    ("chunked", 16),
    ("chunked", 32),
    ("chunked", 64),
    ("chunked", 128),
    ("associative", 64),
]
IN_CHUNKS = [("chunked", 7), ("chunked", 64), ("associative", 7)]
SMALL = [("recurrent", 64), *IN_CHUNKS]


def in_all(which):
    return pytest.mark.parametrize("form", which, ids=lambda form: "-".join(map(str, form)))


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def keys_of(kind, random, shape):
    """Keys as histories have them: repeated and nearly repeated."""
    drawn = random.normal(size=shape)
    if kind == "random":
        return unit(drawn)
    if kind == "duplicates":
        few = unit(random.normal(size=(20, shape[-1])))
        return few[random.integers(0, 20, shape[:-1])]
    if kind == "identical":
        return np.broadcast_to(unit(random.normal(size=shape[-1])), shape)
    cosine = {"cosine .8": 0.8, "cosine .99": 0.99}[kind]
    noise = (1 / cosine - 1) ** 0.5  # |noise|² over |centre|²
    centre = unit(random.normal(size=(*shape[:1], 1, *shape[2:])))
    return unit(centre + noise * unit(drawn))


def decays_of(kind, random, shape):
    if kind == "gaps":
        mild = -np.exp(random.normal(size=shape) - 3)
        gap = random.choice([0, -400, -1e4], size=shape, p=[0.94, 0.03, 0.03])
        return mild + gap
    if kind == "mild":
        return -np.exp(random.normal(size=shape) - 2)
    return np.full(shape, kind, float)


def make(
    batch,
    time,
    *,
    keys="random",
    decay="mild",
    beta=None,
    heads=HEADS,
    widths=(KEY, VALUE),
    seed=0,
):
    """Inputs by name, float32, and an initial state."""
    key, value = widths
    random = np.random.default_rng(seed)
    shape = (batch, time, heads)
    inputs = {
        "q": unit(random.normal(size=(*shape, key))),
        "k": keys_of(keys, random, (*shape, key)),
        "v": random.normal(size=(*shape, value)),
        "log_decay": decays_of(decay, random, shape),
        "beta": random.uniform(0, 2, shape) if beta is None else np.full(shape, beta),
    }
    state = random.normal(size=(batch, heads, key, value))
    return {name: x.astype(np.float32) for name, x in inputs.items()}, state.astype(np.float32)


@partial(jax.jit, static_argnames="form")
def apply(form, inputs, segment_ids=None, initial_state=None):
    implementation, chunk_size = form
    return gated_delta_rule(
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


def by_loops(inputs, segment_ids=None, state=None):
    """The definition, an event at a time, in float64."""
    q, k, v, log_decay, beta = (np.asarray(inputs[name], np.float64) for name in NAMES)
    batch, time, heads, _ = q.shape
    output = np.zeros(v.shape)
    final = np.zeros((batch, heads, k.shape[-1], v.shape[-1]))
    for b in range(batch):
        for h in range(heads):
            memory = np.zeros(final.shape[2:]) if state is None else np.float64(state[b, h])
            before = None
            for t in range(time):
                segment = 1 if segment_ids is None else segment_ids[b, t]
                if segment == 0:
                    continue
                if before not in (None, segment):
                    memory = np.zeros(memory.shape)
                before = segment
                memory = np.exp(log_decay[b, t, h]) * memory
                update = beta[b, t, h] * (v[b, t, h] - memory.T @ k[b, t, h])
                memory = memory + np.outer(k[b, t, h], update)
                output[b, t, h] = memory.T @ q[b, t, h]
            final[b, h] = memory
    return output, final


def by_scan(inputs, segment_ids, state):
    """The same, to be differentiated in float64; numbers, not masks, make the segments."""
    real = segment_ids > 0

    def step(carry, now):
        (memory, before), (q, k, v, log_decay, beta, segment) = carry, now
        new = (segment > 0) & (before > 0) & (segment != before)
        kept = jnp.where(new[:, None, None, None], 0.0, memory)
        decayed = jnp.exp(log_decay)[..., None, None] * kept
        recalled = jnp.sum(decayed * k[..., None], axis=-2)
        written = decayed + k[..., None] * (beta[..., None] * (v - recalled))[..., None, :]
        after = jnp.where((segment > 0)[:, None, None, None], written, memory)
        output = jnp.sum(after * q[..., None], axis=-2)
        return (after, jnp.where(segment > 0, segment, before)), output

    over_time = [jnp.moveaxis(inputs[name], 1, 0) for name in NAMES] + [segment_ids.T]
    (final, _), output = jax.lax.scan(step, (state, jnp.zeros_like(segment_ids[:, 0])), over_time)
    return jnp.where(real[..., None, None], jnp.moveaxis(output, 0, 1), 0), final


@jax.jit
def by_scan_with_gradients(inputs, segment_ids, state):
    of = jax.grad(lambda x, state: projected(by_scan(x, segment_ids, state)), (0, 1))
    return by_scan(inputs, segment_ids, state), of(inputs, state)


def expected_of(inputs, segment_ids, state):
    """Outputs, final state and gradients, in float64 from the inputs as they are rounded."""
    if segment_ids is None:
        segment_ids = np.ones(inputs["q"].shape[:2], np.int32)
    with jax.enable_x64(True):
        wide = {name: np.asarray(x, np.float64) for name, x in inputs.items()}
        wide["log_decay"] = np.maximum(wide["log_decay"], -1e5)  # -inf times 0 is no number
        arguments = wide, segment_ids, np.asarray(state, np.float64)
        return jax.tree.map(np.asarray, by_scan_with_gradients(*arguments))


def assert_all_close(actual, expected, tolerance, absolute=1e-6):
    """Each array by its relative RMS; where what is expected vanishes, absolutely."""
    leaves = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    for index, (got, wanted) in enumerate(leaves):
        assert np.all(np.isfinite(np.asarray(got, np.float64))), index
        if np.sqrt(np.mean(np.square(wanted))) < absolute:
            np.testing.assert_allclose(got, wanted, rtol=0, atol=absolute)
        else:
            assert relative_rms(got, wanted) <= tolerance, (index, relative_rms(got, wanted))


def test_the_two_references_agree():
    inputs, state = make(len(LAYOUT), LAYOUT.shape[1])
    output, final = by_loops(inputs, LAYOUT, state)
    (scanned, scanned_final), _ = expected_of(inputs, LAYOUT, state)
    assert_close(scanned, output, 1e-13)
    assert_close(scanned_final, final, 1e-13)


@in_all(FORMS)
def test_exact_on_the_keys_that_histories_have(form):
    for keys in ("random", "duplicates", "cosine .8", "cosine .99"):
        for decay in (0, -0.1, -20, "gaps"):
            for beta in (0, 1, 1.9):
                inputs, state = make(1, 150, keys=keys, decay=decay, beta=beta)
                outputs, slopes = expected_of(inputs, None, state)
                # Near-parallel keys written at nearly twice their size and never forgotten: the
                # rounding of <k, k'> alone, even with an exact inverse, costs 3e-6.
                worst = "cosine" in keys and decay == 0 and beta == 1.9
                actual, actual_slopes = apply_and_differentiate(form, inputs, None, state)
                assert_all_close(actual, outputs, 1e-5 if worst else 2e-6)
                assert_all_close(actual_slopes, slopes, 1e-5)


@pytest.mark.optimized
@in_all(FORMS)
def test_exact_on_identical_keys(form):
    """Those are the worst conditioned; with β = 1 and no decay, most gradients vanish."""
    for decay in (0, -0.1):
        inputs, state = make(1, 150, keys="identical", decay=decay, beta=1.9)
        outputs, slopes = expected_of(inputs, None, state)
        actual, actual_slopes = apply_and_differentiate(form, inputs, None, state)
        assert_all_close(actual, outputs, 1e-5)
        assert_all_close(actual_slopes, slopes, 5e-5)
    inputs, state = make(1, 150, keys="identical", decay=0, beta=1)
    outputs, slopes = expected_of(inputs, None, state)
    actual, actual_slopes = apply_and_differentiate(form, inputs, None, state)
    assert_all_close(actual, outputs, 2e-6)
    scale = max(np.abs(slope).max() for slope in jax.tree.leaves(slopes))
    for got, wanted in zip(*map(jax.tree.leaves, (actual_slopes, slopes)), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-6 * scale)


@in_all([("recurrent", 64), ("chunked", 64), ("associative", 64)])
def test_bfloat16_inputs(form):
    for keys in ("random", "duplicates", "cosine .8", "cosine .99"):
        for decay in (0, -0.1, "gaps"):
            for beta in (1, 1.9):
                inputs, state = make(1, 150, keys=keys, decay=decay, beta=beta)
                for name in ("q", "k", "v"):
                    inputs[name] = jnp.asarray(inputs[name], jnp.bfloat16)
                outputs, slopes = expected_of(inputs, None, state)
                actual, actual_slopes = apply_and_differentiate(form, inputs, None, state)
                assert actual[0].dtype == jnp.bfloat16 and actual[1].dtype == jnp.float32
                assert_all_close(actual, outputs, 5e-3)
                assert_all_close(actual_slopes, slopes, 1e-2)


@pytest.mark.optimized
@in_all(SMALL)
@settings(max_examples=12, deadline=None)
@given(segment_ids=segment_layouts(*LAYOUT.shape))
@example(segment_ids=LAYOUT)
def test_equals_the_definition_whatever_the_segments(form, segment_ids):
    inputs, state = make(*LAYOUT.shape)
    output, final = apply(form, inputs, segment_ids, state)
    expected, expected_final = by_loops(inputs, segment_ids, state)
    assert_all_close((output, final), (expected, expected_final), 2e-6)
    assert np.all(np.asarray(output)[segment_ids == 0] == 0)
    empty = ~segment_ids.any(1)
    np.testing.assert_array_equal(np.asarray(final)[empty], state[empty])


@settings(max_examples=12, deadline=None)
@given(segment_ids=segment_layouts(2, 37), seed=st.integers(0, 99))
@pytest.mark.parametrize("chunk_size", [1, 5, 36])
@pytest.mark.parametrize("implementation", ["chunked", "associative"])
def test_any_chunks(implementation, chunk_size, segment_ids, seed):
    inputs, state = make(2, 37, keys="duplicates", decay="gaps", seed=seed)
    actual = apply((implementation, chunk_size), inputs, segment_ids, state)
    assert_all_close(actual, by_loops(inputs, segment_ids, state), 2e-6)


@pytest.mark.parametrize(("groups", "chunks", "size"), [(4, 1, 5), (1, 4, 5), (2, 3, 4)])
def test_any_groups_of_chunks(monkeypatch, groups, chunks, size):
    # Which one is used depends on the backend and on what fits.
    monkeypatch.setattr(rule, "cut", lambda *_: Cut(groups, chunks, size))
    inputs, state = make(*LAYOUT.shape, keys="duplicates", decay="gaps")
    expected, slopes = expected_of(inputs, LAYOUT, state)
    # A chunk size of its own keeps JAX from taking another test's program.
    form = ("chunked", 1000 * groups + chunks)
    actual, actual_slopes = apply_and_differentiate(form, inputs, LAYOUT, state)
    assert_all_close(actual, expected, 2e-6)
    assert_all_close(actual_slopes, slopes, 1e-5)


@pytest.mark.parametrize("time", [1, 2, 15, 17, 65])
def test_any_length(time):
    inputs, state = make(2, time, keys="duplicates", decay="gaps")
    expected = by_loops(inputs, None, state)
    for form in (("recurrent", 64), ("chunked", 16), ("associative", 16)):
        assert_all_close(apply(form, inputs, None, state), expected, 2e-6)


def assert_a_horizon_learns_from_small_gaps(form, heads=HEADS):
    """Its gradient weights each log-decay's by the gap: no rounding error may stand for a zero."""
    inputs, state = make(2, 150, heads=heads)
    gap = np.random.default_rng(1).choice([0.001, 100, 900], (2, 150, 1))
    inputs["log_decay"] = np.broadcast_to(-gap, inputs["log_decay"].shape).astype(np.float32)
    slopes = apply_and_differentiate(form, inputs, None, state)[1][0]["log_decay"]
    expected = expected_of(inputs, None, state)[1][0]["log_decay"]
    of_horizon = lambda slope: np.sum(gap * np.asarray(slope, np.float64), axis=(0, 1))  # noqa: E731
    np.testing.assert_allclose(of_horizon(slopes), of_horizon(expected), rtol=1e-5)


@in_all([("recurrent", 64), *IN_CHUNKS, ("associative", 64)])
def test_a_horizon_learns_from_small_gaps_between_large_ones(form):
    assert_a_horizon_learns_from_small_gaps(form)


@pytest.mark.optimized
@in_all([("recurrent", 64), *IN_CHUNKS])
@pytest.mark.parametrize("decay", ["mild", "gaps"])
def test_gradients_in_segments_and_nothing_from_padding(form, decay):
    inputs, state = make(*LAYOUT.shape, decay=decay)
    _, expected = expected_of(inputs, LAYOUT, state)
    padding = LAYOUT == 0
    for array in inputs.values():
        bad = np.where(np.arange(padding.sum()) % 2, np.nan, np.inf)
        array[padding] = bad.reshape(-1, *(1,) * (array.ndim - 2))
    (output, _), actual = apply_and_differentiate(form, inputs, LAYOUT, state)
    for array in (output, *actual[0].values()):
        assert np.all(np.asarray(array)[padding] == 0)
    assert_all_close(actual, expected, 1e-5)


@in_all([("chunked", 64), ("associative", 64)])
def test_exact_over_two_thousand_events(form):
    inputs, state = make(1, 2048, keys="duplicates", decay="gaps", beta=1, heads=1)
    cuts = np.sort(np.random.default_rng(0).choice(2048, 40, replace=False))
    ids = 1 + np.searchsorted(cuts, np.arange(2048), side="right")[None].astype(np.int32)
    outputs, slopes = expected_of(inputs, ids, state)
    actual, actual_slopes = apply_and_differentiate(form, inputs, ids, state)
    assert_all_close(actual, outputs, 2e-6)
    assert_all_close(actual_slopes, slopes, 1e-5)


@in_all(SMALL)
def test_forgetting_everything_is_a_fresh_start(form):
    """A log-decay of -inf, in the middle of chunks and at their edges."""
    inputs, state = make(2, 19)
    inputs["log_decay"][:, [4, 9, 10]] = -np.inf
    outputs = by_loops(inputs, None, state)
    _, slopes = expected_of(inputs, None, state)
    actual, actual_slopes = apply_and_differentiate(form, inputs, None, state)
    assert_all_close(actual, outputs, 2e-6)
    assert_all_close(actual_slopes, slopes, 1e-5)


@in_all(SMALL)
def test_nothing_reads_the_future(form):
    inputs, _ = make(*LAYOUT.shape)
    before, _ = apply(form, inputs)
    for t in range(1, 19):
        changed = {name: array.copy() for name, array in inputs.items()}
        for array in changed.values():
            array[:, t:] *= 0.7
        after, _ = apply(form, changed)
        np.testing.assert_array_equal(after[:, :t], before[:, :t])
        assert np.all(np.any(after[:, t] != before[:, t], axis=-1))


@in_all(SMALL)
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


@in_all(SMALL)
def test_split_anywhere_and_carried_on_equals_one_shot(form):
    """The first call has padding for what comes later, the second for what came before."""
    inputs, start = make(*LAYOUT.shape)
    segment_ids = (LAYOUT.max(1, keepdims=True) == LAYOUT) * LAYOUT  # one segment a row
    output, final = apply(form, inputs, segment_ids, start)
    for cut in range(20):
        earlier = np.arange(19) < cut
        head, state = apply(form, inputs, segment_ids * earlier, start)
        tail, state = apply(form, inputs, segment_ids * ~earlier, state)
        assert relative_rms(head + tail, output) < 2e-6
        assert relative_rms(state, final) < 2e-6


def test_serving_an_event_at_a_time_equals_training():
    inputs, state = make(*LAYOUT.shape, keys="cosine .99", decay="gaps")
    output, final = apply(("chunked", 64), inputs, None, state)
    serve, steps = jax.jit(gated_delta_rule), []
    for t in range(19):
        step, state = serve(
            **{name: array[:, t : t + 1] for name, array in inputs.items()}, initial_state=state
        )
        steps.append(step)
    assert relative_rms(np.concatenate(steps, axis=1), output) < 2e-6
    assert relative_rms(state, final) < 2e-6


@in_all(SMALL)
def test_a_row_does_not_know_its_batch(form):
    inputs, state = make(*LAYOUT.shape)
    together = apply(form, inputs, LAYOUT, state)
    for row in range(len(LAYOUT)):
        one = slice(row, row + 1)
        alone = apply(
            form, {name: array[one] for name, array in inputs.items()}, LAYOUT[one], state[one]
        )
        for got, wanted in zip(alone, together, strict=True):
            assert relative_rms(got, wanted[one]) < 1e-6


def assert_same_in_shard_map_and_remat(form, arguments, expected):
    """Outputs and gradients; arguments are inputs, segment ids and a state."""
    mesh = jax.make_mesh(
        (1, 1),
        ("data", "model"),
        axis_types=(jax.sharding.AxisType.Auto,) * 2,
        devices=jax.devices()[:1],
    )
    spec = jax.sharding.PartitionSpec
    slots, state_spec = spec("data", None, "model"), spec("data", "model")
    sharded = jax.shard_map(
        partial(apply, form),
        mesh=mesh,
        in_specs=(slots, spec("data"), state_spec),
        out_specs=(slots, state_spec),
    )

    @jax.jit
    def transformed(inputs, ids, state):
        results = []
        for run in (sharded, jax.checkpoint(partial(apply, form))):
            loss = lambda x, state, run=run: projected(run(x, ids, state))  # noqa: E731
            results.append((run(inputs, ids, state), jax.grad(loss, (0, 1))(inputs, state)))
        return results

    for actual in transformed(*arguments):
        assert_all_close(actual, expected, 1e-6)


@in_all([("recurrent", 64), ("chunked", 7), ("associative", 7)])
def test_under_vmap_shard_map_and_remat(form):
    inputs, state = make(*LAYOUT.shape)
    arguments = inputs, LAYOUT, state
    expected = apply_and_differentiate(form, *arguments)
    assert_same_in_shard_map_and_remat(form, arguments, expected)
    twice = jax.tree.map(lambda x: np.stack([x, x]), arguments)
    mapped = jax.vmap(partial(apply_and_differentiate, form))(*twice)
    assert_all_close(mapped, jax.tree.map(lambda x: np.stack([x, x]), expected), 1e-6)


@in_all([("recurrent", 64), ("chunked", 7), ("associative", 7)])
@pytest.mark.parametrize("shared", NAMES)
def test_an_input_that_devices_share_has_a_gradient(form, shared):
    """Constants, for example: a memory without decay, or with β = 1."""
    inputs, _ = make(2, 9)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec
    specs = {name: spec() if name == shared else spec("data") for name in inputs}

    def total(x):
        return jnp.sum(apply(form, x)[0])

    def on_devices(x):
        return jax.grad(lambda x: jax.lax.psum(total(x), "data"))(x)

    mapped = jax.shard_map(on_devices, mesh=mesh, in_specs=(specs,), out_specs=specs)
    assert_all_close(jax.jit(mapped)(inputs), jax.grad(total)(inputs), 1e-6)


def gradient_bytes(form, batch, time, heads, width):
    slots = jax.ShapeDtypeStruct((batch, time, heads, width), jnp.float32)
    gates = jax.ShapeDtypeStruct((batch, time, heads), jnp.float32)
    ids = jax.ShapeDtypeStruct((batch, time), jnp.int32)

    def loss(q, k, v, log_decay, beta, ids):
        inputs = dict(zip(NAMES, (q, k, v, log_decay, beta), strict=True))
        return jnp.sum(apply(form, inputs, ids)[0] ** 2)

    of = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3, 4)))
    compiled = of.lower(slots, slots, slots, gates, gates, ids).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@in_all([("chunked", 64), ("associative", 64)])
def test_memory_of_the_gradient_grows_linearly(form):
    """From 1k to 8k events; a [T, T] array would add 256 MB."""
    lengths = [2**10, 2**13]
    sizes = [gradient_bytes(form, 1, time, 1, 16) for time in lengths]
    exponent = np.polyfit(np.log(lengths), np.log(sizes), 1)[0]
    assert exponent < 1.05, f"memory grows as T**{exponent:.2f}: {sizes}"


@pytest.mark.parametrize("chunk_size", [32, 64])
def test_memory_of_the_gradient_at_the_size_of_a_training_step(chunk_size):
    assert gradient_bytes(("chunked", chunk_size), 4, 2048, 4, 64) < 100e6


@in_all([("recurrent", 64), ("chunked", 64), ("associative", 64)])
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_lowers_for_accelerators(form, platform):
    inputs, state = make(*LAYOUT.shape)
    traced = apply_and_differentiate.trace(form, inputs, LAYOUT, state)
    lowered = traced.lower(lowering_platforms=(platform,)).as_text()
    assert "dot_general" in lowered and "lapack" not in lowered and "cusolver" not in lowered


def test_the_default_is_the_step_for_one_event_and_chunks_beyond():
    for time, form in ((1, ("recurrent", 64)), (19, ("chunked", 64))):
        inputs, state = make(2, time)
        expected = apply(form, inputs, None, state)
        for got, wanted in zip(apply((None, 64), inputs, None, state), expected, strict=True):
            np.testing.assert_array_equal(got, wanted)


def test_triton_runs_or_says_why_not(monkeypatch):
    inputs, _ = make(2, 6)

    def refusal(change, **options):
        with pytest.raises((ValueError, NotImplementedError)) as error:
            gated_delta_rule(**(inputs | change), implementation="triton", **options)
        return str(error.value)

    wide = {name: np.zeros((2, 6, 2, 129), np.float32) for name in ("q", "k")}
    assert "K and V must be at most 128, got K = 129, V = 24" in refusal(wide)
    half = {name: inputs[name].astype(np.float16) for name in ("q", "k", "v")}
    assert "queries, keys and values must be bfloat16 or float32, got float16" in refusal(half)
    with monkeypatch.context() as patch:
        patch.setattr(triton_choice, "_PACKAGES", ("no_such_package",))
        assert "no_such_package is not installed: pip install -e '.[cuda]'" in refusal({})
    with monkeypatch.context() as patch:
        # As if all were installed, on a CPU: refused when it is lowered, before Triton is needed.
        patch.setattr(triton_choice, "_PACKAGES", ())
        patch.setattr(
            gated_delta_rule_triton,
            "_kernels",
            lambda: types.SimpleNamespace(chunk_forward=None, scan_forward=None),
        )
        message = refusal({})
        assert "'triton' runs on CUDA only, not on cpu" in message


@pytest.mark.usefixtures("without_type_checks")
def test_refuses_what_does_not_fit():
    inputs, state = make(2, 6)
    refusals = [
        ({"implementation": "pallas"}, "implementation 'pallas': choose None"),
        ({"chunk_size": 0}, "chunk_size must be at least 1, got 0"),
        ({"k": inputs["k"][..., :3]}, r"q and k must be \[B, T, H, K\]"),
        ({"v": inputs["v"][:, :5]}, r"v \[B, T, H, V\]"),
        ({name: x[:, :0] for name, x in inputs.items()}, "T must be at least 1"),
        ({"beta": inputs["beta"][..., None]}, r"beta must be \[B, T, H\] = \(2, 6, 2\)"),
        ({"log_decay": inputs["log_decay"][:1]}, r"log_decay must be \[B, T, H\]"),
        ({"segment_ids": LAYOUT}, r"segment_ids must be \[B, T\] = \(2, 6\)"),
        ({"initial_state": state[:1]}, r"initial_state must be \[B, H, K, V\]"),
    ]
    for change, message in refusals:
        with pytest.raises(ValueError, match=message):
            gated_delta_rule(**(inputs | change))
