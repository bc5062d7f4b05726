import re
import types
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings

from linseqrec.ops.kernels import linear_attention_triton, triton_choice
from linseqrec.ops.linear_attention import LinearAttentionState, linear_attention
from tests.ops.closeness import assert_close, projected
from tests.ops.layouts import LAYOUT, packed, segment_layouts

HEADS, KEY, VALUE, DENOMINATOR = 2, 5, 7, 3
EPSILON = 1e-2  # large enough that a wrong one shows

# Chunks of 4 do not divide the 19 slots of most tests; one of 64 holds them all.
CAUSAL = [("recurrent", 64), ("chunked", 4), ("chunked", 64), ("associative", 4)]
FORMS = [*CAUSAL, ("full", 4), ("full", 64)]
IN_CHUNKS = [form for form in FORMS if form[1] == 4]


def in_all(which):
    return pytest.mark.parametrize("form", which, ids=lambda form: "-".join(map(str, form)))


def random_inputs(batch, time, *, separate=True, seed=0):
    """A rotated numerator (any sign), a positive denominator, as in RELA; float32."""
    random = np.random.default_rng(seed)

    def normal(width):
        return random.normal(size=(batch, time, HEADS, width)).astype(np.float32)

    def positive(width):
        return np.exp(normal(width))

    if separate:
        inputs = {"query": normal(KEY), "key": normal(KEY), "value": normal(VALUE)}
        width = DENOMINATOR
        return inputs | {"denominator_query": positive(width), "denominator_key": positive(width)}
    return {"query": positive(KEY), "key": positive(KEY), "value": normal(VALUE)}


def random_state(batch, *, width=DENOMINATOR, seed=1):
    random = np.random.default_rng(seed)
    return LinearAttentionState(
        random.normal(size=(batch, HEADS, KEY, VALUE)).astype(np.float32),
        np.exp(random.normal(size=(batch, HEADS, width))).astype(np.float32),
    )


@partial(jax.jit, static_argnames="form")
def apply(form, inputs, segment_ids=None, initial_state=None):
    implementation, chunk_size = form
    return linear_attention(
        **inputs,
        segment_ids=segment_ids,
        initial_state=initial_state,
        causal=implementation != "full",
        implementation=implementation,
        chunk_size=chunk_size,
        epsilon=EPSILON,
    )


def by_loops(inputs, segment_ids=None, state=None, *, causal=True, epsilon=EPSILON):
    """The definition, a slot at a time in float64."""
    x = {name: np.asarray(array, np.float64) for name, array in inputs.items()}
    batch, time, heads, _ = x["query"].shape
    key_of, query_of = x.get("denominator_key", x["key"]), x.get("denominator_query", x["query"])
    if segment_ids is None:
        segment_ids = np.ones((batch, time), int)
    output = np.zeros(x["value"].shape)
    epsilon = np.broadcast_to(np.float64(epsilon), (batch, time, heads))
    shape = (batch, heads, x["key"].shape[-1], x["value"].shape[-1])
    final = (np.zeros(shape), np.zeros((batch, heads, key_of.shape[-1])))
    if state is not None:
        final = tuple(np.array(array, np.float64) for array in state)
    for b in range(batch):
        ids = segment_ids[b]
        for h in range(heads):
            for m in np.flatnonzero(ids):
                numerator, denominator = np.zeros(x["value"].shape[-1]), epsilon[b, m, h]
                if state is not None and ids[m] == ids[ids > 0][0]:
                    numerator = x["query"][b, m, h] @ np.float64(state[0][b, h])
                    denominator += query_of[b, m, h] @ np.float64(state[1][b, h])
                for n in np.flatnonzero(ids == ids[m]):
                    if n <= m or not causal:
                        weight = x["query"][b, m, h] @ x["key"][b, n, h]
                        numerator = numerator + weight * x["value"][b, n, h]
                        denominator += query_of[b, m, h] @ key_of[b, n, h]
                output[b, m, h] = numerator / denominator
            if ids.any():
                last = ids[ids > 0][-1]
                if last != ids[ids > 0][0]:
                    final[0][b, h], final[1][b, h] = 0, 0
                for n in np.flatnonzero(ids == last):
                    final[0][b, h] += np.outer(x["key"][b, n, h], x["value"][b, n, h])
                    final[1][b, h] += key_of[b, n, h]
    return output, final


def first_and_last(segment_ids):
    """Which slots are of the row's first, and of its last segment."""
    first, last = np.zeros_like(segment_ids, bool), np.zeros_like(segment_ids, bool)
    for b, ids in enumerate(segment_ids):
        events = ids[ids > 0]
        if events.size:
            first[b], last[b] = ids == events[0], ids == events[-1]
    return first, last


def by_matrix(inputs, segment_ids, state, *, causal):
    """The definition as one masked [T, T] matrix, to differentiate in float64."""
    names = "query", "key", "value", "denominator_query", "denominator_key"
    q, k, v, dq, dk = (inputs[name] for name in names)
    real, (first, last) = segment_ids > 0, first_and_last(segment_ids)
    mask = (segment_ids[:, :, None] == segment_ids[:, None, :]) & real[:, :, None]
    mask = np.float64(np.tril(mask) if causal else mask)
    scores = jnp.einsum("bmhk,bnhk,bmn->bmnh", q, k, mask)
    numerator = jnp.einsum("bmnh,bnhv->bmhv", scores, v)
    numerator += jnp.einsum("bmhk,bhkv,bm->bmhv", q, state[0], np.float64(first))
    denominator = EPSILON + jnp.einsum("bmhk,bnhk,bmn->bmh", dq, dk, mask)
    denominator += jnp.einsum("bmhk,bhk,bm->bmh", dq, state[1], np.float64(first))
    keeps = np.float64((first & last).any(1) | ~real.any(1))
    key_value = jnp.einsum("bnhk,bnhv,bn->bhkv", k, v, np.float64(last))
    key_sum = jnp.einsum("bnhk,bn->bhk", dk, np.float64(last))
    return numerator / denominator[..., None], (
        key_value + jnp.einsum("bhkv,b->bhkv", state[0], keeps),
        key_sum + jnp.einsum("bhk,b->bhk", state[1], keeps),
    )


@pytest.mark.optimized
@in_all(FORMS)
@settings(max_examples=12, deadline=None)
@given(segment_ids=segment_layouts(*LAYOUT.shape))
@example(segment_ids=LAYOUT)
def test_equals_the_definition_whatever_the_segments(form, segment_ids):
    inputs, state = random_inputs(*LAYOUT.shape), random_state(len(LAYOUT))
    output, final = apply(form, inputs, segment_ids, state)
    expected, expected_final = by_loops(inputs, segment_ids, state, causal=form[0] != "full")
    assert_close(output, expected, 1e-5)
    assert np.all(np.asarray(output)[segment_ids == 0] == 0)
    empty = ~segment_ids.any(1)
    for actual, wanted, before in zip(final, expected_final, state, strict=True):
        assert actual.dtype == np.float32
        assert_close(actual, wanted, 1e-5)
        np.testing.assert_array_equal(np.asarray(actual)[empty], before[empty])


@in_all(FORMS)
@pytest.mark.parametrize(("time", "separate"), [(1, True), (20, False)])
def test_equals_the_definition_without_segments(form, time, separate):
    inputs = random_inputs(2, time, separate=separate)
    output, final = apply(form, inputs)
    expected, expected_final = by_loops(inputs, causal=form[0] != "full")
    assert_close(output, expected, 1e-5)
    for actual, wanted in zip(final, expected_final, strict=True):
        assert_close(actual, wanted, 1e-5)


@in_all(FORMS)
def test_epsilon_may_be_one_number_a_reading(form):
    inputs, (implementation, chunk_size) = random_inputs(*LAYOUT.shape), form
    epsilon = np.random.default_rng(2).uniform(1, 9, (*LAYOUT.shape, HEADS)).astype(np.float32)
    causal = implementation != "full"
    output, _ = linear_attention(
        **inputs,
        segment_ids=LAYOUT,
        epsilon=epsilon,
        causal=causal,
        implementation=implementation,
        chunk_size=chunk_size,
    )
    expected, _ = by_loops(inputs, LAYOUT, causal=causal, epsilon=epsilon)
    assert_close(output, expected, 1e-5)


@partial(jax.jit, static_argnames="form")
def gradients(form, inputs, segment_ids, state):
    of = jax.grad(lambda inputs, state: projected(apply(form, inputs, segment_ids, state)), (0, 1))
    return of(inputs, state)


def float64_gradients(inputs, segment_ids, state, *, causal):
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: np.asarray(x, np.float64), (inputs, state))
        definition = partial(by_matrix, causal=causal)
        matrix = definition(wide[0], segment_ids, wide[1])
        loops = by_loops(inputs, segment_ids, state, causal=causal)
        for actual, wanted in zip(*map(jax.tree.leaves, (matrix, loops)), strict=True):
            assert_close(actual, wanted, 1e-13)
        of = jax.grad(lambda *args: projected(definition(args[0], segment_ids, args[1])), (0, 1))
        return jax.tree.map(np.asarray, jax.jit(of)(*wide))


@pytest.mark.optimized
@in_all(FORMS)
def test_gradients_and_nothing_from_padding(form):
    inputs, state = random_inputs(*LAYOUT.shape), random_state(len(LAYOUT))
    expected = float64_gradients(inputs, LAYOUT, state, causal=form[0] != "full")
    padding = LAYOUT == 0
    for array in inputs.values():
        array[padding] = np.where(np.arange(padding.sum()) % 2, np.nan, np.inf)[:, None, None]
    output, _ = apply(form, inputs, LAYOUT, state)
    assert np.all(np.asarray(output)[padding] == 0)
    actual = gradients(form, inputs, LAYOUT, state)
    for array in actual[0].values():
        assert np.all(np.asarray(array)[padding] == 0)
    for got, wanted in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        assert_close(got, wanted, 1e-5)


@in_all(IN_CHUNKS)
def test_bfloat16(form):
    """Within 1 % of the largest number, against float64 on the same rounded inputs."""
    inputs, state = random_inputs(*LAYOUT.shape), random_state(len(LAYOUT))
    inputs = {name: jnp.asarray(array, jnp.bfloat16) for name, array in inputs.items()}
    output, final = apply(form, inputs, LAYOUT, state)
    assert output.dtype == jnp.bfloat16
    causal = form[0] != "full"
    expected, expected_final = by_loops(inputs, LAYOUT, state, causal=causal)
    assert_close(output, expected, 1e-2)
    for actual, wanted in zip(final, expected_final, strict=True):
        assert actual.dtype == np.float32
        assert_close(actual, wanted, 1e-5)  # products of bfloat16 are exact in float32
    actual = gradients(form, inputs, LAYOUT, state)
    expected = float64_gradients(inputs, LAYOUT, state, causal=causal)
    for got, wanted in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        assert_close(got, wanted, 1e-2)


@in_all(CAUSAL)
def test_nothing_reads_the_future(form):
    inputs = random_inputs(*LAYOUT.shape)
    before, _ = apply(form, inputs)
    assert_close(before, by_loops(inputs)[0], 1e-5)
    for t in range(1, 19):
        changed = {name: array.copy() for name, array in inputs.items()}
        for array in changed.values():
            array[:, t:] *= 3
        after, _ = apply(form, changed)
        np.testing.assert_array_equal(after[:, :t], before[:, :t])
        assert np.all(after[:, t] != before[:, t])


@in_all(FORMS)
def test_packed_row_equals_its_parts_in_any_order_and_padding(form):
    inputs = random_inputs(1, 19)

    def run(order, gaps):
        row, segment_ids, places = packed(inputs, order, gaps)
        output, _ = apply(form, row, segment_ids)
        return {part: output[:, place] for part, place in places.items()}

    alone = {part: run([part], [part])[part] for part in range(4)}
    for order, gaps in [([0, 1, 2, 3], [0, 0, 0, 0]), ([2, 0, 3, 1], [3, 0, 1, 1])]:
        for part, output in run(order, gaps).items():
            assert_close(output, alone[part], 2e-6)


@in_all(CAUSAL)
def test_split_anywhere_and_carried_on_equals_one_shot(form):
    """The first call has padding for what comes later, the second for what came before."""
    inputs, start = random_inputs(*LAYOUT.shape), random_state(len(LAYOUT))
    segment_ids = (LAYOUT.max(1, keepdims=True) == LAYOUT) * LAYOUT  # one segment a row
    output, final = apply(form, inputs, segment_ids, start)
    for cut in range(20):
        earlier = np.arange(19) < cut
        head, state = apply(form, inputs, segment_ids * earlier, start)
        tail, state = apply(form, inputs, segment_ids * ~earlier, state)
        assert_close(head + tail, output, 1e-5)
        for actual, wanted in zip(state, final, strict=True):
            assert_close(actual, wanted, 1e-6)


def test_serving_an_event_at_a_time_equals_training():
    inputs, state = random_inputs(*LAYOUT.shape), random_state(len(LAYOUT))
    segment_ids = np.ones_like(LAYOUT)
    output, final = apply(("chunked", 4), inputs, segment_ids, state)
    serve, steps = jax.jit(partial(linear_attention, epsilon=EPSILON)), []
    for t in range(19):
        now = {name: array[:, t : t + 1] for name, array in inputs.items()}
        step, state = serve(**now, initial_state=state)
        steps.append(step)
    assert_close(np.concatenate(steps, axis=1), output, 1e-5)
    for actual, wanted in zip(state, final, strict=True):
        assert_close(actual, wanted, 1e-6)


@in_all([("recurrent", 64), *IN_CHUNKS])
def test_under_vmap_and_shard_map(form):
    inputs, state = random_inputs(*LAYOUT.shape), random_state(len(LAYOUT))
    expected = apply(form, inputs, LAYOUT, state)
    double = jax.tree.map(lambda x: np.stack([x, x]), (inputs, LAYOUT, state))
    mapped = jax.vmap(partial(apply, form))(*double)
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((1,), ("data",), axis_types=auto, devices=jax.devices()[:1])
    rows = jax.sharding.PartitionSpec("data")

    def on_mesh(*args):
        return jax.shard_map(partial(apply, form), mesh=mesh, in_specs=rows, out_specs=rows)(*args)

    sharded = on_mesh(inputs, LAYOUT, state)
    for wanted, *actual in zip(*map(jax.tree.leaves, (expected, mapped, sharded)), strict=True):
        assert_close(actual[0], np.stack([wanted, wanted]), 2e-6)
        assert_close(actual[1], wanted, 2e-6)
    output, _ = on_mesh(inputs)
    assert_close(output, by_loops(inputs, causal=form[0] != "full")[0], 1e-5)


@in_all([("chunked", 64), ("associative", 64), ("full", 64)])
def test_memory_of_the_gradient_grows_linearly(form):
    """From 1k to 8k tokens, segments included; a [T, T] array would add 256 MB."""
    lengths, bytes_ = [2**10, 2**13], []
    for time in lengths:
        shape = jax.ShapeDtypeStruct((1, time, 2, 16), jnp.float32)
        ids = jax.ShapeDtypeStruct((1, time), jnp.int32)

        def loss(query, key, value, ids):
            inputs = {"query": query, "key": key, "value": value}
            return jnp.sum(apply(form, inputs, ids)[0] ** 2)

        lowered = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(shape, shape, shape, ids)
        bytes_.append(lowered.compile().memory_analysis().temp_size_in_bytes)
    exponent = np.polyfit(np.log(lengths), np.log(bytes_), 1)[0]
    assert exponent < 1.05, f"memory grows as T**{exponent:.2f}: {bytes_}"


@in_all([form for form in FORMS if form[1] == 64])
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_lowers_for_accelerators(form, platform):
    inputs, state = random_inputs(*LAYOUT.shape), random_state(len(LAYOUT))
    inputs = {name: jnp.asarray(array, jnp.bfloat16) for name, array in inputs.items()}
    traced = gradients.trace(form, inputs, LAYOUT, state)
    assert "dot_general" in traced.lower(lowering_platforms=(platform,)).as_text()


@in_all([form for form in FORMS if form[1] == 64])
def test_no_product_of_float32_is_left_to_an_accelerators_rounding(form):
    text = (
        gradients.trace(form, random_inputs(*LAYOUT.shape), LAYOUT, random_state(len(LAYOUT)))
        .lower()
        .as_text()
    )
    precisions = re.findall(r"dot_general .*precision = \[(\w+), (\w+)\]", text)
    assert text.count("dot_general ") == len(precisions) > 0
    assert set(precisions) == {("HIGHEST", "HIGHEST")}


def test_triton_runs_or_says_why_not(monkeypatch):
    inputs = random_inputs(2, 6)

    def refusal(change, **options):
        with pytest.raises((ValueError, NotImplementedError)) as error:
            linear_attention(**(inputs | change), implementation="triton", **options)
        return str(error.value)

    wide = {name: np.zeros((2, 6, HEADS, 129), np.float32) for name in ("query", "key")}
    assert "K and V and Kd must be at most 128, got K = 129, V = 7, Kd = 3" in refusal(wide)
    assert "must be bfloat16 or float32, got float16" in refusal(
        {name: array.astype(np.float16) for name, array in inputs.items()}
    )
    assert "'triton' does not fit causal=False" in refusal({}, causal=False)
    with monkeypatch.context() as patch:
        patch.setattr(triton_choice, "_PACKAGES", ("no_such_package",))
        assert "no_such_package is not installed: pip install -e '.[cuda]'" in refusal({})
    with monkeypatch.context() as patch:
        # As if all were installed, on a CPU: refused when it is lowered, before Triton is needed.
        patch.setattr(triton_choice, "_PACKAGES", ())
        kernels = types.SimpleNamespace(attend=None)
        patch.setattr(linear_attention_triton, "_kernels", lambda: kernels)
        assert "'triton' runs on CUDA only, not on cpu" in refusal({})


@pytest.mark.usefixtures("without_type_checks")
def test_refuses_what_does_not_fit():
    inputs = random_inputs(2, 6)
    for causal, implementation in [(False, "chunked"), (True, "full"), (True, "quick")]:
        with pytest.raises(ValueError, match=f"{implementation}.*causal={causal}"):
            linear_attention(**inputs, causal=causal, implementation=implementation)
    with pytest.raises(ValueError, match="together"):
        linear_attention(**{k: v for k, v in inputs.items() if k != "denominator_key"})
    with pytest.raises(ValueError, match="value must be"):
        linear_attention(**(inputs | {"value": inputs["value"][:, :5]}))
    with pytest.raises(ValueError, match="query and its key"):
        linear_attention(**(inputs | {"key": inputs["key"][..., :4]}))
    with pytest.raises(ValueError, match="segment_ids"):
        linear_attention(**inputs, segment_ids=LAYOUT)
    with pytest.raises(ValueError, match="key_value"):
        linear_attention(**inputs, initial_state=random_state(3))
    with pytest.raises(ValueError, match="chunk_size"):
        linear_attention(**inputs, chunk_size=0)
    with pytest.raises(ValueError, match="epsilon"):
        linear_attention(**inputs, epsilon=np.ones(6))
