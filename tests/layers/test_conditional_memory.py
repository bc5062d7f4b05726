"""The conditional memory: its gradients, its state, and how dead codes come back to life."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linseqrec.layers.conditional_memory import ConditionalMemory
from linseqrec.models.weights import load_parameters, parameter_arrays
from tests.models.reference import jit
from tests.ops.closeness import assert_close
from tests.ops.layouts import LAYOUT

# The equations are tested with the model's, in tests/models/test_sinkrec.py.

WIDTH, CODES, LEVELS, DILATIONS = 8, 6, 2, (1, 3)
ONE = np.where(LAYOUT > 0, 1, 0)
ONE[0, 8:10] = 1  # one history per row


def memory(seed=0, **overrides):
    settings = dict(window=3, dilations=DILATIONS, levels=LEVELS, codes=CODES) | overrides
    made = ConditionalMemory(WIDTH, **settings, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(seed)
    arrays = {name: rng.normal(size=a.shape) / 2 for name, a in parameter_arrays(made).items()}
    arrays["usage"] = np.ones_like(arrays["usage"])
    load_parameters(made, arrays)
    return made


def embeddings(seed=1):
    return np.random.default_rng(seed).normal(size=(*LAYOUT.shape, WIDTH)).astype(np.float32)


def read(made, x, ids, past=None):
    past = made.initial_state(len(x)) if past is None else past
    graphdef, params = nnx.split(made)
    return _read(graphdef, params, jnp.asarray(x), jnp.asarray(ids), past)


@partial(jit, static_argnums=0)
def _read(graphdef, params, x, ids, past):
    return nnx.merge(graphdef, params)(x, ids, past)


def gradients(made, x, ids, loss):
    """Of `loss(reading)` in the parameters, by name, and in the embeddings."""
    graphdef, params = nnx.split(made)

    def both(params, x):
        past = made.initial_state(len(ids))
        return loss(nnx.merge(graphdef, params)(x, jnp.asarray(ids), past)[0])

    to_params, to_x = jit(jax.grad(both, argnums=(0, 1)))(params, jnp.asarray(x))
    holder = nnx.merge(graphdef, to_params)
    return parameter_arrays(holder), np.asarray(to_x)


# ------------------------------------------------------------------------------------- gradients


def test_the_reconstructions_target_is_detached():
    """With a decoder of zeros nothing but the target depends on the embeddings."""
    made = memory()
    for decoder in made.decoders:
        decoder.kernel[...] *= 0
    to_params, to_x = gradients(made, embeddings(), LAYOUT, lambda r: r.losses["reconstruction"])
    np.testing.assert_array_equal(to_x, 0)
    assert np.abs(to_params["decoders/0/bias"]).min() > 0
    # And with a decoder they are reached through the encoder.
    _, to_x = gradients(memory(), embeddings(), LAYOUT, lambda r: r.losses["reconstruction"])
    assert np.abs(to_x[LAYOUT > 0]).max() > 1e-4
    np.testing.assert_array_equal(to_x[LAYOUT == 0], 0)


def test_only_the_quantisation_loss_moves_the_codebooks():
    made, x = memory(), embeddings()

    def others(reading):
        everything = (
            reading.vector,
            reading.slots,
            reading.error,
            reading.losses["reconstruction"],
        )
        return sum(jnp.sum(value**2) for value in everything)

    to_params, _ = gradients(made, x, LAYOUT, others)
    np.testing.assert_array_equal(to_params["codebooks"], 0)
    assert np.abs(to_params["encoders/0/kernel"]).max() > 1e-4
    to_params, _ = gradients(made, x, LAYOUT, lambda r: r.losses["vq"])
    moved = np.abs(to_params["codebooks"]).max(axis=-1) > 0
    assert moved.any(axis=-1).all() and not moved.all()
    np.testing.assert_array_equal(to_params["usage"], 0)


def test_a_frozen_codebook_stays():
    made = memory(frozen=True)
    to_params, to_x = gradients(made, embeddings(), LAYOUT, lambda r: r.losses["vq"])
    np.testing.assert_array_equal(to_params["codebooks"], 0)
    assert np.abs(to_x).max() > 1e-4
    before = parameter_arrays(made)
    after = reseeded(made, embeddings(), LAYOUT)
    for name, array in parameter_arrays(after).items():
        np.testing.assert_array_equal(array, before[name])


# ----------------------------------------------------------------------------------------- state


def fields(reading):
    return reading.vector, reading.slots, reading.error


@pytest.mark.parametrize("cuts", [range(1, 19), [2, 3, 11]])
def test_in_parts_equals_the_whole_row(cuts):
    made, x = memory(), embeddings()
    whole, last = read(made, x, ONE)
    past, parts = None, []
    for start, end in zip([0, *cuts], [*cuts, ONE.shape[1]], strict=True):
        reading, past = read(made, x[:, start:end], ONE[:, start:end], past)
        parts.append(fields(reading))
    for got, expected in zip(zip(*parts, strict=True), fields(whole), strict=True):
        got = np.concatenate(got, axis=1)
        assert_close(got[ONE > 0], np.asarray(expected)[ONE > 0], 1e-5)
    np.testing.assert_array_equal(past.length, last.length)
    np.testing.assert_array_equal(past.values, last.values)


def test_dropout_takes_of_the_vectors_and_of_the_slots_each_its_own():
    reading, _ = read(memory(), embeddings(), ONE)
    dropped = reading.dropped(0.25, jax.random.key(0))
    gone = {}
    for name in ("vector", "slots"):
        before, after = np.asarray(getattr(reading, name)), np.asarray(getattr(dropped, name))
        gone[name] = after == 0
        assert 0.1 < np.mean(gone[name][ONE > 0]) < 0.4
        assert_close(after, np.where(gone[name], 0, before / 0.75), 1e-6)
    # One key for both would draw the same mask, number by number.
    vector, slots = gone["vector"].ravel(), gone["slots"].ravel()
    assert (vector != slots[: vector.size]).any()
    np.testing.assert_array_equal(dropped.error, reading.error)
    assert reading.dropped(0.25, None).vector is reading.vector


def test_a_window_reads_its_taps_and_no_others():
    made, x = memory(), embeddings()
    ids = np.array([[1] * 9 + [2] * 10] * len(LAYOUT), np.int32)
    first, _ = read(made, x, ids)
    changed = x.copy()
    changed[:, 5] += 1
    second, _ = read(made, changed, ids)
    differs = np.abs(np.asarray(first.vector - second.vector)).max(axis=(0, 2)) > 0
    # Windows of three events at dilations 1 and 3, within the first segment's nine slots.
    np.testing.assert_array_equal(np.flatnonzero(differs), [5, 6, 7, 8])


# --------------------------------------------------------------------------------------- metrics


def windows(made, x, ids):
    past = made.initial_state(len(ids))
    return made._windows(jnp.asarray(x), jnp.asarray(ids), past)[0]


def vectors(made, x, ids, window):
    """z of one window, of each slot."""
    taps, _ = windows(made, x, ids)[window]
    return np.asarray(made._encode(window, taps))


def codes_in_use(made, x, ids):
    """By window and level: how many events take each code, the nearest of what is left; and the
    mean over events of the squares' share that no code explains, by window."""
    used, missed = np.zeros((len(DILATIONS), LEVELS, CODES)), []
    for s in range(len(DILATIONS)):
        z = vectors(made, x, ids, s)[ids > 0]
        rest = z
        for level in range(LEVELS):
            book = np.asarray(made.codebooks[s, level])
            taken = ((rest[:, None] - book) ** 2).sum(-1).argmin(axis=1)
            used[s, level] = np.bincount(taken, minlength=CODES)
            rest = rest - book[taken]
        missed.append(((rest**2).sum(-1) / (z**2).sum(-1)).mean())
    return used, missed


def test_the_metrics_are_of_events_by_window_and_level():
    made, x = memory(), embeddings()
    # Padding that would take codes of its own, were it counted.
    x[LAYOUT == 0] = 30
    reading, _ = read(made, x, LAYOUT)
    used, missed = codes_in_use(made, x, LAYOUT)
    np.testing.assert_array_equal(reading.code_counts, used)
    shares = used / used.sum(-1, keepdims=True)
    logs = np.log(shares, where=shares > 0, out=np.zeros_like(shares))
    expected = {}
    for s, dilation in enumerate(DILATIONS):
        name = f"3x{dilation}"
        taps, present = windows(made, x, LAYOUT)[s]
        codes = np.asarray(made.codebooks[s])
        z = rest = vectors(made, x, LAYOUT, s)
        for book in codes:
            rest = rest - book[((rest[..., None, :] - book) ** 2).sum(-1).argmin(-1)]
        decoder = made.decoders[s]
        decoded = ((z - rest) @ decoder.kernel[...] + decoder.bias[...]).reshape(taps.shape)
        there = np.asarray(present)[..., None]
        expected[f"reconstruction_error/{name}"] = ((decoded - taps) ** 2 * there).sum() / (
            taps**2 * there
        ).sum()
        expected[f"quantization_error/{name}"] = missed[s]
        for level in range(LEVELS):
            entropy = -(shares[s, level] * logs[s, level]).sum()
            expected[f"perplexity/{name}/{level}"] = np.exp(entropy)
    assert reading.metrics.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(reading.metrics[name], value, 1e-5)


# ------------------------------------------------------------------------------------ dead codes


def reseeded(made, x, ids, key=0):
    graphdef, params = nnx.split(made)
    counts = read(made, x, ids)[0].code_counts

    @jit
    def step(params):
        merged = nnx.merge(graphdef, params)
        merged.reseed(jnp.asarray(x), jnp.asarray(ids), counts, jax.random.key(key))
        return nnx.state(merged)

    return nnx.merge(graphdef, step(params))


def test_dead_codes_are_replaced_by_what_events_leave_for_them_and_live_ones_stay():
    made, x = memory(), embeddings()
    # One code of each book was last used long ago, and lies where nothing comes near it.
    made.codebooks[...] = made.codebooks[...].at[:, :, 3].set(50.0)
    made.usage[...] = made.usage[...].at[:, :, 3].set(0.1)
    used, _ = codes_in_use(made, x, LAYOUT)
    assert (used[:, :, 3] == 0).all()
    before = np.asarray(made.codebooks[...])
    after = reseeded(made, x, LAYOUT)
    books = np.asarray(after.codebooks[...])
    live = np.arange(CODES) != 3
    np.testing.assert_array_equal(books[:, :, live], before[:, :, live])
    for s in range(len(DILATIONS)):
        rest = vectors(made, x, LAYOUT, s)[LAYOUT > 0]
        for level in range(LEVELS):
            distance = np.abs(rest - books[s, level, 3]).max(axis=1).min()
            assert distance < 1e-5
            taken = ((rest[:, None] - books[s, level]) ** 2).sum(-1).argmin(axis=1)
            rest = rest - books[s, level][taken]
    shares = used / (LAYOUT > 0).sum() * CODES
    expected = np.where(live, 0.98 + 0.02 * shares, 0.25)
    assert_close(after.usage[...], expected, 1e-6)
    assert (codes_in_use(after, x, LAYOUT)[0][:, 0, 3] > 0).all()
    # Of all that a step may change, only this has changed.
    rest_before, rest_after = parameter_arrays(made), parameter_arrays(after)
    for name in rest_before.keys() - {"codebooks", "usage"}:
        np.testing.assert_array_equal(rest_after[name], rest_before[name])


@pytest.mark.parametrize("usage, lives", [(1.0, 114), (0.25, 46)])
def test_a_code_out_of_use_dies_after_its_time_and_no_sooner(usage, lives):
    """usage · 0.98^n, of the mean's use, falls below a tenth at n = 114, and at 46 if it is new."""
    made, x = memory(), embeddings()
    made.codebooks[...] = made.codebooks[...].at[:, :, 3].set(50.0)
    made.usage[...] = made.usage[...].at[:, :, 3].set(usage)
    counts = read(made, x, LAYOUT)[0].code_counts
    graphdef, params = nnx.split(made)

    def step(params, _):
        merged = nnx.merge(graphdef, params)
        merged.reseed(jnp.asarray(x), jnp.asarray(LAYOUT), counts, jax.random.key(0))
        return nnx.state(merged), merged.codebooks[0, 0, 3, 0]

    _, over_time = jax.jit(lambda params: jax.lax.scan(step, params, length=115))(params)
    np.testing.assert_array_equal(np.asarray(over_time) == 50, np.arange(1, 116) < lives)


def fresh(**overrides):
    settings = dict(window=3, dilations=DILATIONS, levels=LEVELS, codes=CODES) | overrides
    return ConditionalMemory(WIDTH, **settings, rngs=nnx.Rngs(0))


def test_fresh_codes_are_drawn_from_the_first_batch():
    made = fresh()
    x = jnp.asarray(embeddings())
    before, _ = read(made, x, LAYOUT)
    after = reseeded(made, x, LAYOUT)
    assert (np.asarray(after.codebooks[...]) != np.asarray(made.codebooks[...])).all()
    np.testing.assert_array_equal(after.usage[...], 0.25)
    reading, _ = read(after, x, LAYOUT)
    assert reading.losses["vq"] < 0.7 * before.losses["vq"]
    other = reseeded(made, x, LAYOUT, key=1)
    assert (np.asarray(after.codebooks[...]) != np.asarray(other.codebooks[...])).any()


def test_fresh_codes_are_of_different_events():
    """As many as there are events: by chance, were they drawn with replacement, half as many."""
    made, x = fresh(codes=32), embeddings()
    events = int((LAYOUT > 0).sum())
    assert LEVELS * 32 > events > 32
    after = reseeded(made, x, LAYOUT)
    for s in range(len(DILATIONS)):
        z = vectors(after, x, LAYOUT, s)[LAYOUT > 0]
        first = np.asarray(after.codebooks[s, 0])
        of = np.abs(z[:, None] - first).max(-1).argmin(0)
        assert_close(z[of], first, 1e-5)
        assert len(np.unique(of)) == 32


def test_a_code_that_nothing_is_left_for_waits_for_a_batch_with_more():
    """Five events make five codes of a book of six, and leave nothing for the next level."""
    made, x = fresh(), embeddings()
    few = np.where(np.arange(LAYOUT.shape[1]) < 5, 1, 0)[None]
    x = x[:1]
    after = reseeded(made, x, few)
    usage, books = np.asarray(after.usage[...]), np.asarray(after.codebooks[...])
    np.testing.assert_array_equal(usage[:, 0], 0.25)
    np.testing.assert_array_equal(usage[:, 1], 0)
    np.testing.assert_array_equal(books[:, 1], made.codebooks[:, 1])
    # Not even where events took it: it is still as it was before any data.
    assert read(after, x, few)[0].code_counts[:, 1].max() > 0
    again = reseeded(after, x, few)
    np.testing.assert_array_equal(again.usage[:, 1], 0)
    more = reseeded(again, embeddings(), LAYOUT)
    np.testing.assert_array_equal(more.usage[:, 1], 0.25)


def test_a_batch_without_events_changes_nothing():
    made = memory()
    made.usage[...] *= 0
    after = reseeded(made, np.full_like(embeddings(), np.nan), 0 * LAYOUT)
    for name, array in parameter_arrays(made).items():
        np.testing.assert_array_equal(parameter_arrays(after)[name], array)
