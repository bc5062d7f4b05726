import types
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings

from linseqrec.ops.kernels import softmax_attention_triton, triton_choice
from linseqrec.ops.segments import keep
from linseqrec.ops.softmax_attention import Fading, MemorySlots, softmax_attention
from tests.ops.closeness import assert_close
from tests.ops.layouts import LAYOUT, packed, segment_layouts

ROWS, SLOTS = LAYOUT.shape
HEADS, KEY, VALUE = 2, 5, 7
SCALE = 0.9  # unlike the default: scores large enough that a wrong one shows
# Of the slots, in seconds: minutes apart.
TIMES = np.cumsum(np.random.default_rng(4).integers(1, 500, LAYOUT.shape), axis=1, dtype=np.int32)
# Three years pass before slot 3: what is older has faded.
YEARS_LATER = TIMES + np.int32(3 * 365 * 86_400) * (np.arange(SLOTS) >= 3).astype(np.int32)

# Implementation, block size, window: ten blocks in four parts, one, two, windows within a
# block, of exactly one block, in two spans, and longer than the row. Last, how many slots behind,
# where not 0: fewer than a segment has, and more.
FORMS = [
    ("dense", 64, None),
    ("dense", 64, 3),
    ("blockwise", 2, None),
    ("blockwise", 64, None),
    ("blockwise", 5, None),
    ("blockwise", 4, 3),
    ("banded", 1, 1),
    ("banded", 2, 2),
    ("banded", 5, 3),
    ("banded", 1, 4),
    ("banded", 64, 6),
    ("banded", 1, 50),
    ("dense", 64, None, 2),
    ("dense", 64, 3, 1),
    ("blockwise", 4, None, 3),
    ("blockwise", 4, 3, 5),
    ("banded", 2, 3, 2),
    ("banded", 5, 1, 8),
    ("banded", 1, 50, 1),
]


def in_all(which=FORMS):
    return pytest.mark.parametrize("form", which, ids=lambda form: "-".join(map(str, form)))


def random_inputs(batch=ROWS, time=SLOTS, seed=0):
    random = np.random.default_rng(seed)
    shapes = {"query": KEY, "key": KEY, "value": VALUE}
    return {
        name: random.normal(size=(batch, time, HEADS, width)).astype(np.float32)
        for name, width in shapes.items()
    }


def fading_inputs():
    """With what a head's scores lose a second: about one in four minutes, or in half an hour."""
    return random_inputs() | {"rate": np.array([4e-3, 5e-4], np.float32)}


@partial(jax.jit, static_argnames="form")
def apply(form, inputs, segment_ids=None):
    implementation, block_size, window, behind = parts(form)
    inputs = dict(inputs)
    rate = inputs.pop("rate", None)
    return softmax_attention(
        **inputs,
        fading=None if rate is None else Fading(YEARS_LATER, rate),
        segment_ids=segment_ids,
        implementation=implementation,
        block_size=block_size,
        window=window,
        behind=behind,
        scale=SCALE,
    )


def parts(form):
    return (*form, 0)[:4]


def sees(form, ids, t, s):
    _, _, window, behind = parts(form)
    last = t - behind
    return ids[t] == ids[s] != 0 and s <= last and (not window or last - s < window)


def by_loops(form, inputs, segment_ids):
    """The definition, a query at a time in float64."""
    q, k, v = (np.asarray(inputs[name], np.float64) for name in ("query", "key", "value"))
    rate = np.asarray(inputs.get("rate", np.zeros(HEADS)), np.float64)
    times = YEARS_LATER.astype(np.float64)
    output = np.zeros(v.shape)
    for b, ids in enumerate(segment_ids):
        for t in np.flatnonzero(ids):
            seen = [s for s in range(len(ids)) if sees(form, ids, t, s)]
            for h in range(q.shape[2]) if seen else ():
                scores = SCALE * np.array([q[b, t, h] @ k[b, s, h] for s in seen])
                if rate[h]:
                    scores -= rate[h] * (times[b, t] - times[b, seen])
                weights = np.exp(scores - scores.max())
                output[b, t, h] = weights @ v[b, seen, h] / weights.sum()
    return output


def by_matrix(form, inputs, segment_ids):
    """The definition as one masked [T, T] matrix, to differentiate in float64."""
    slots = range(segment_ids.shape[1])
    mask = np.array(
        [[[sees(form, ids, t, s) for s in slots] for t in slots] for ids in segment_ids]
    )
    real = {n: keep(segment_ids > 0, x) for n, x in inputs.items() if n != "rate"}
    scores = SCALE * jnp.einsum("bthk,bshk->bhts", real["query"], real["key"])
    if "rate" in inputs:
        times = YEARS_LATER.astype(np.float64)
        ages = times[:, :, None] - times[:, None, :]
        scores = scores - inputs["rate"][:, None, None] * ages[:, None]
    weights = jax.nn.softmax(jnp.where(mask[:, None], scores, -1e9)) * mask[:, None]
    return jnp.einsum("bhts,bshv->bthv", weights, real["value"])


@pytest.mark.optimized
@in_all()
@settings(max_examples=8, deadline=None)
@given(segment_ids=segment_layouts(ROWS, SLOTS))
@example(segment_ids=LAYOUT)
def test_equals_the_definition_whatever_the_segments(form, segment_ids):
    inputs = fading_inputs()
    output = apply(form, inputs, segment_ids)
    assert_close(output, by_loops(form, inputs, segment_ids), 2e-6)
    assert np.all(np.asarray(output)[segment_ids == 0] == 0)


@in_all()
@pytest.mark.parametrize("before", [4, SLOTS - 1])
def test_queries_of_the_last_slots_read_as_in_the_whole_row(form, before):
    inputs = random_inputs()
    last = inputs | {"query": inputs["query"][:, before:]}
    expected = by_loops(form, inputs, LAYOUT)[:, before:]
    assert_close(apply(form, last, LAYOUT), expected, 2e-6)


@in_all([("blockwise", 4, None), ("banded", 1, 4)])
@pytest.mark.parametrize("time", [1, 4, 9])
def test_equals_the_definition_without_segments(form, time):
    inputs = random_inputs(2, time)
    assert_close(apply(form, inputs), by_loops(form, inputs, np.ones((2, time), int)), 2e-6)


def test_defaults():
    """No window: blocks; a window that hides something: a band; the scale is 1 / sqrt(K)."""
    inputs = random_inputs()
    inputs["query"] *= SCALE * np.sqrt(KEY)
    scaled = inputs | {"query": random_inputs()["query"]}
    for window, chosen in [(None, "blockwise"), (4, "banded"), (SLOTS, "blockwise")]:
        expected = apply((chosen, 64, window), scaled)
        assert_close(jax.jit(partial(softmax_attention, window=window))(**inputs), expected, 2e-6)
        traced = str(jax.make_jaxpr(partial(softmax_attention, window=window))(**inputs))
        named = partial(softmax_attention, window=window, implementation=chosen)
        assert traced == str(jax.make_jaxpr(named)(**inputs))


def weighted(output):
    weights = np.random.default_rng(9).normal(size=output.shape)
    return jnp.sum(output.astype(jnp.promote_types(output.dtype, jnp.float32)) * weights)


@partial(jax.jit, static_argnames="form")
def gradients(form, inputs, segment_ids):
    return jax.grad(lambda inputs: weighted(apply(form, inputs, segment_ids)))(inputs)


def float64_gradients(form, inputs, segment_ids):
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: np.asarray(x, np.float64), inputs)
        definition = partial(by_matrix, form, segment_ids=segment_ids)
        assert_close(definition(wide), by_loops(form, inputs, segment_ids), 1e-13)
        of = jax.grad(lambda inputs: weighted(definition(inputs)))
        return jax.tree.map(np.asarray, jax.jit(of)(wide))


GRADIENTS = [
    ("dense", 64, None),
    ("blockwise", 2, None),
    ("blockwise", 5, None),
    ("banded", 2, 2),
    ("banded", 5, 3),
    ("banded", 1, 4),
    ("dense", 64, None, 2),
    ("blockwise", 4, None, 3),
    ("banded", 2, 3, 2),
]


@pytest.mark.optimized
@in_all(GRADIENTS)
def test_gradients_and_nothing_from_padding(form):
    inputs = fading_inputs()
    expected = float64_gradients(form, inputs, LAYOUT)
    padding = LAYOUT == 0
    for array in (inputs[name] for name in ("query", "key", "value")):
        array[padding] = np.array([np.nan, np.inf])[np.arange(array[padding].size) % 2].reshape(
            array[padding].shape
        )
    assert np.all(np.asarray(apply(form, inputs, LAYOUT))[padding] == 0)
    for name, gradient in gradients(form, inputs, LAYOUT).items():
        assert name == "rate" or np.all(np.asarray(gradient)[padding] == 0)
        assert_close(gradient, expected[name], 5e-6)


@in_all([("blockwise", 5, None), ("banded", 5, 3)])
def test_bfloat16(form):
    """Within 1 % (gradients 2 %) of the largest number, against float64 on the rounded inputs."""
    inputs = {name: jnp.asarray(x, jnp.bfloat16) for name, x in random_inputs().items()}
    output = apply(form, inputs, LAYOUT)
    assert output.dtype == jnp.bfloat16
    assert_close(output, by_loops(form, inputs, LAYOUT), 1e-2)
    expected = float64_gradients(form, inputs, LAYOUT)
    for name, gradient in gradients(form, inputs, LAYOUT).items():
        assert_close(gradient, expected[name], 2e-2)


@in_all()
def test_nothing_reads_the_future_nor_beyond_the_window(form):
    inputs, (_, _, window, behind) = random_inputs(), parts(form)
    # A query that sees one slot reads its value, whatever it asks.
    names = ("key", "value") if behind else ("query", "key", "value")
    before = np.asarray(apply(form, inputs))
    for t in range(SLOTS):
        changed = {name: array.copy() for name, array in inputs.items()}
        for array in (changed[name] for name in names):
            array[:, t] += np.arange(1, 1 + array[0, t].size).reshape(array[0, t].shape)
        differs = np.any(np.asarray(apply(form, changed)) != before, axis=(0, 2, 3))
        after = np.arange(SLOTS) - t - behind
        expected = (after >= 0) & (after < (window or SLOTS))
        np.testing.assert_array_equal(differs, expected)


@in_all([("blockwise", 4, None), ("banded", 1, 4)])
def test_packed_row_equals_its_parts_in_any_order_and_padding(form):
    inputs = random_inputs(1)

    def outputs(order, gaps):
        row, segment_ids, places = packed(inputs, order, gaps)
        output = apply(form, row, segment_ids)
        return {part: output[:, place] for part, place in places.items()}

    alone = {part: outputs([part], [part])[part] for part in range(4)}
    for order, gaps in [([0, 1, 2, 3], [0, 0, 0, 0]), ([2, 0, 3, 1], [3, 0, 1, 1])]:
        for part, output in outputs(order, gaps).items():
            assert_close(output, alone[part], 2e-6)


@in_all([("blockwise", 4, None), ("banded", 1, 4)])
def test_under_vmap_and_shard_map(form):
    inputs = random_inputs()
    expected = apply(form, inputs, LAYOUT)
    double = jax.tree.map(lambda x: np.stack([x, x]), (inputs, LAYOUT))
    assert_close(jax.vmap(partial(apply, form))(*double), np.stack([expected, expected]), 2e-6)
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((1,), ("data",), axis_types=auto, devices=jax.devices()[:1])
    rows = jax.sharding.PartitionSpec("data")
    sharded = jax.shard_map(partial(apply, form), mesh=mesh, in_specs=rows, out_specs=rows)
    assert_close(sharded(inputs, LAYOUT), expected, 2e-6)


@in_all([("blockwise", 64, None), ("banded", 64, 100)])
def test_memory_of_the_gradient_grows_linearly(form):
    lengths, bytes_ = [2**11, 2**14], []
    for time in lengths:
        shape = jax.ShapeDtypeStruct((1, time, 2, 16), jnp.float32)
        inputs = {"query": shape, "key": shape, "value": shape}
        ids = jax.ShapeDtypeStruct((1, time), jnp.int32)
        compiled = gradients.lower(form, inputs, ids).compile()
        bytes_.append(compiled.memory_analysis().temp_size_in_bytes)
    exponent = np.polyfit(np.log(lengths), np.log(bytes_), 1)[0]
    assert exponent < 1.05, f"memory grows as T**{exponent:.2f}: {bytes_}"


# ---------------------------------------------------------------------- memory slots, and the past

WITH_MEMORY = [form for form in FORMS if form[0] != "dense"]
MEMORY, SLOT_WIDTH = 3, 5


def memory_slots(inputs, seed=5):
    random = np.random.default_rng(seed)
    arrays = (
        random.normal(size=(*inputs["query"].shape[:2], MEMORY, SLOT_WIDTH)),
        random.normal(size=(SLOT_WIDTH, HEADS, KEY)),
        random.normal(size=(SLOT_WIDTH, HEADS, VALUE)),
    )
    return {"memory": MemorySlots(*(array.astype(np.float32) / 2 for array in arrays))}


def with_memory_by_loops(form, inputs, segment_ids):
    """The definition with each query's own slots beside those it sees, in float64."""
    arrays = {n: np.asarray(a, np.float64) for n, a in inputs.items() if n != "memory"}
    slots, key_map, value_map = (np.asarray(array, np.float64) for array in inputs["memory"])
    output = np.zeros(arrays["value"].shape)
    for b, ids in enumerate(segment_ids):
        for t in np.flatnonzero(ids):
            seen = [s for s in range(len(ids)) if sees(form, ids, t, s)]
            for h in range(HEADS):
                keys = np.vstack([arrays["key"][b, seen, h], slots[b, t] @ key_map[:, h]])
                values = np.vstack([arrays["value"][b, seen, h], slots[b, t] @ value_map[:, h]])
                weights = np.exp(SCALE * keys @ arrays["query"][b, t, h])
                output[b, t, h] = weights @ values / weights.sum()
    return output


def test_memory_slots_in_bfloat16():
    """Within 1 % of the largest number, against float64 on the rounded inputs."""
    inputs = random_inputs()
    inputs |= memory_slots(inputs)
    inputs = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), inputs)
    form = ("banded", 5, 3)
    output = apply(form, inputs, LAYOUT)
    assert output.dtype == jnp.bfloat16
    assert_close(output, with_memory_by_loops(form, inputs, LAYOUT), 1e-2)


@in_all(WITH_MEMORY)
def test_memory_slots_stand_in_the_same_softmax(form):
    inputs = random_inputs()
    inputs |= memory_slots(inputs)
    expected = with_memory_by_loops(form, inputs, LAYOUT)
    inputs["memory"].slots[LAYOUT == 0] = np.nan
    output = apply(form, inputs, LAYOUT)
    assert_close(output, expected, 2e-6)
    assert np.all(np.asarray(output)[LAYOUT == 0] == 0)


def test_gradients_of_memory_slots():
    """Finite differences in float64 along a random direction."""
    form = ("banded", 1, 4)
    inputs = random_inputs()
    inputs |= memory_slots(inputs)
    gradient = gradients(form, inputs, LAYOUT)
    rng = np.random.default_rng(7)
    for name, array in inputs["memory"]._asdict().items():
        direction = rng.normal(size=array.shape)
        up, down = (
            inputs | {"memory": inputs["memory"]._replace(**{name: array + sign * direction})}
            for sign in (1e-6, -1e-6)
        )
        slopes = [
            (
                with_memory_by_loops(form, side, LAYOUT)
                * np.random.default_rng(9).normal(size=(*LAYOUT.shape, HEADS, VALUE))
            ).sum()
            for side in (up, down)
        ]
        expected = (slopes[0] - slopes[1]) / 2e-6
        found = np.asarray(getattr(gradient["memory"], name))
        assert (found * direction).sum() == pytest.approx(expected, rel=1e-4)
    assert np.all(np.asarray(gradient["memory"].slots)[LAYOUT == 0] == 0)


@in_all()
@pytest.mark.parametrize("past", [1, 6, 16])
def test_the_last_queries_alone_equal_those_of_the_whole_row(form, past):
    inputs = random_inputs()
    if form[0] != "dense":
        inputs |= memory_slots(inputs)
    whole = apply(form, inputs, LAYOUT)
    alone = inputs | {"query": inputs["query"][:, past:]}
    if "memory" in inputs:
        slots = inputs["memory"].slots[:, past:]
        alone |= {"memory": inputs["memory"]._replace(slots=slots)}
    assert_close(apply(form, alone, LAYOUT), whole[:, past:], 2e-6)


def test_triton_runs_or_says_why_not(monkeypatch):
    inputs = random_inputs()

    def refusal(change):
        with pytest.raises((ValueError, NotImplementedError)) as error:
            softmax_attention(**(inputs | change), implementation="triton")
        return str(error.value)

    wide = {"value": np.zeros((ROWS, SLOTS, HEADS, 129), np.float32)}
    assert "K and V must be at most 128, got K = 5, V = 129" in refusal(wide)
    assert "must be bfloat16 or float32, got float16" in refusal(
        {name: array.astype(np.float16) for name, array in inputs.items()}
    )
    assert "'triton' cannot run here: it takes no memory slots" in refusal(memory_slots(inputs))
    fading = Fading(TIMES, np.ones(HEADS, np.float32))
    assert "it takes no fading" in refusal({"fading": fading})
    with monkeypatch.context() as patch:
        patch.setattr(triton_choice, "_PACKAGES", ("no_such_package",))
        assert "no_such_package is not installed: pip install -e '.[cuda]'" in refusal({})
    with monkeypatch.context() as patch:
        # As if all were installed, on a CPU: refused when it is lowered, before Triton is needed.
        patch.setattr(triton_choice, "_PACKAGES", ())
        kernels = types.SimpleNamespace(attend=None)
        patch.setattr(softmax_attention_triton, "_kernels", lambda: kernels)
        assert "'triton' runs on CUDA only, not on cpu: choose another, or None" in refusal({})


@pytest.mark.usefixtures("without_type_checks")
def test_refuses_what_does_not_fit():
    inputs = random_inputs()
    rate = np.ones(HEADS, np.float32)
    slots = memory_slots(inputs)["memory"]
    for wrong, message in [
        ({"window": 0}, "a window is at least 1"),
        ({"behind": -1}, "behind is at least 0"),
        ({"implementation": "banded"}, "needs a window"),
        ({"implementation": "flash"}, "'flash'"),
        ({"block_size": 0}, "block_size"),
        ({"segment_ids": LAYOUT[:, 1:]}, "segment_ids"),
        ({"key": inputs["key"][:, 1:]}, "query and key"),
        ({"value": inputs["value"][:, 1:]}, "query and key"),
        ({"fading": Fading(TIMES[:, 1:], rate)}, "fading must be of times"),
        ({"fading": Fading(TIMES, rate[1:])}, "fading must be of times"),
        ({"fading": Fading(TIMES / 2, rate)}, "times must be integers"),
        ({"memory": slots._replace(slots=slots.slots[:, 1:])}, "memory slots must be"),
        ({"memory": slots._replace(key=slots.key[1:])}, "memory slots must be"),
        ({"memory": slots._replace(value=slots.value[:, 1:])}, "memory slots must be"),
        ({"memory": slots} | {"implementation": "dense"}, "takes no memory"),
    ]:
        with pytest.raises(ValueError, match=message):
            softmax_attention(**(inputs | wrong))
