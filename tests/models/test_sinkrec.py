"""SinkRec against float64 NumPy written from its equations; its ablations and its state."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linseqrec.layers.gated_delta import GatedDeltaMixer
from linseqrec.layers.tdgd import TDGD
from linseqrec.models.weights import load_parameters, parameter_arrays
from tests.models.reference import (
    abstract_model,
    assert_states_equal,
    hidden_states,
    jit,
    make_events,
    random_histories,
    random_model,
    run,
)
from tests.models.sinkrec_reference import sinkrec
from tests.models.small_sinkrec import SMALL, ragged, with_times
from tests.ops.closeness import assert_close

ARMS = {
    "no memory": dict(memory=False),
    "no reinjection": dict(reinjection=False),
    "no memory key-values": dict(memory_key_values=False),
    "a bag of events to the attention": dict(attention_convolution=False),
    "contiguous only": dict(dilations=(1,)),
    "dilated only": dict(dilations=(3,)),
    "one level": dict(levels=1),
    "no write gate": dict(write_gate="none"),
    "write gate from the input": dict(write_gate="input"),
    "no read removal": dict(read_removal=False),
    "neither": dict(write_gate="none", read_removal=False),
    "no temporal addressing": dict(temporal_addressing=False),
    "no temporal decay": dict(temporal_decay=False),
    "two loops": dict(loops=2),
    "three loops, unshared": dict(loops=3, shared=False),
}


def logits(model, encoding):
    return np.asarray(encoding.hidden @ model.item_table().T)


# Arms are told apart on one loop: a test's time is compilation.
ONCE = dataclasses.replace(SMALL, loops=1)


@functools.cache
def full_model():
    """The full model's arrays, and what its equations make of `ragged()`."""
    _, arrays = random_model(ONCE)
    return arrays, sinkrec(ONCE, arrays, ragged())


@pytest.mark.parametrize("arm", ["full", *ARMS])
def test_the_logits_and_losses_are_the_equations(arm):
    """And each arm's output is another than the full model's with the same parameters."""
    config = dataclasses.replace(ONCE, **ARMS.get(arm, {}))
    model, arrays = random_model(config)
    events = ragged()
    expected, vq, reconstruction = sinkrec(config, arrays, events)
    encoding = run(model, events)
    real = events.items > 0
    assert_close(logits(model, encoding)[real], expected[real], 2e-5)
    if config.memory:
        assert set(encoding.losses) == {"vq", "reconstruction"}
        assert_close(encoding.losses["vq"], 0.1 * vq, 1e-5)
        assert_close(encoding.losses["reconstruction"], 0.1 * reconstruction, 1e-5)
        assert len(encoding.metrics) == len(config.dilations) * (config.levels + 2)
    else:
        assert encoding.losses == encoding.metrics == {}
    if arm != "full":
        full, (others, _, _) = full_model()
        same = {
            name: array for name, array in full.items() if array.shape == np.shape(arrays.get(name))
        }
        mine, _, _ = sinkrec(config, arrays | same, events)
        assert np.abs(mine - others)[real].max() > 0.01


def test_loss_weights_and_no_reconstruction():
    events = ragged()
    model, arrays = random_model(ONCE)
    base = run(model, events)
    weighted = dataclasses.replace(ONCE, quantization_weight=0.3, reconstruction_weight=0.2)
    twin = abstract_model(weighted)
    load_parameters(twin, arrays)
    losses = run(twin, events).losses
    assert losses["vq"] == pytest.approx(3 * float(base.losses["vq"]), rel=1e-5)
    assert losses["reconstruction"] == pytest.approx(
        2 * float(base.losses["reconstruction"]), rel=1e-5
    )
    bare = abstract_model(dataclasses.replace(ONCE, reconstruction_weight=0.0))
    kept = {name: a for name, a in arrays.items() if "decoders" not in name}
    load_parameters(bare, kept)
    assert set(run(bare, events).losses) == {"vq"}
    np.testing.assert_array_equal(hidden_states(bare, events), hidden_states(model, events))


def test_a_fresh_model_reinjects_nothing_and_its_gates_are_nearly_shut():
    """W_gv and the loop embeddings are 0, and the gates' biases -2."""
    arrays = parameter_arrays(SMALL.build(50, rngs=nnx.Rngs(0)))
    for name in ("blocks/0/reinjection/value/kernel", "loops", "memory/usage"):
        np.testing.assert_array_equal(arrays[name], 0)
    for name in ("coverage_bias", "removal_bias"):
        np.testing.assert_array_equal(arrays[f"blocks/0/mixer/{name}"], -2)
    days = np.exp(arrays["blocks/0/mixer/log_horizon"])
    assert (days >= 1).all() and (days <= 365).all()


# ------------------------------------------------------------------------------------- the mixer

MIXER = dict(key_width=4, value_width=5, chunk_size=8)


@pytest.mark.parametrize("how", ["absent", "shut"])
def test_without_gates_and_time_the_mixer_is_gated_deltanets(how):
    """Exactly: gates that are not there, and gates that are 0, times without gaps."""
    parts = (
        dict(gap_features=None, temporal_decay=False, write_gate="none", read_removal=False)
        if how == "absent"
        else dict(gap_features=5, temporal_decay=True, write_gate="memory", read_removal=True)
    )
    plain = GatedDeltaMixer(12, 2, **MIXER, rngs=nnx.Rngs(0))
    ours = TDGD(12, 2, **MIXER, **parts, rngs=nnx.Rngs(1))
    arrays = parameter_arrays(plain)
    rest = {name: a for name, a in parameter_arrays(ours).items() if name not in arrays}
    assert (rest == {}) == (how == "absent")
    for name in rest:
        if name.endswith("_bias"):
            rest[name] = np.full_like(rest[name], -1e9)
    load_parameters(ours, arrays | rest)

    events = ragged()
    rng = np.random.default_rng(3)
    x = jnp.asarray(rng.normal(size=(4, 20, 12)), jnp.float32)
    memory = random_model(SMALL)[0].memory
    reading, _ = memory(x, jnp.asarray(events.segment_ids), memory.initial_state(4))
    mine, expected = (
        jit(
            functools.partial(
                mixer,
                segment_ids=jnp.asarray(events.segment_ids),
                state=mixer.initial_state(4),
                **given,
            )
        )(x)
        for mixer, given in [
            (
                ours,
                dict(gaps=jnp.zeros((4, 20)), gap_features=jnp.zeros((4, 20, 5)), memory=reading),
            ),
            (plain, {}),
        ]
    )
    for one, other in zip(jax.tree.leaves(mine), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other)


def test_zero_gaps_equal_the_model_without_time():
    events = dataclasses.replace(ragged(), timestamps=np.zeros((4, 20), np.int32))
    model, arrays = random_model(ONCE)
    still = dataclasses.replace(ONCE, temporal_addressing=False, temporal_decay=False)
    twin, own = random_model(still)
    load_parameters(twin, {name: array for name, array in arrays.items() if name in own})
    first, second = hidden_states(model, events), hidden_states(twin, events)
    np.testing.assert_allclose(first, second, atol=1e-6)
    moved = hidden_states(model, ragged())
    assert np.abs(moved - first)[ragged().items > 0].max() > 0.01


def test_the_future_is_not_read():
    model, _ = random_model(SMALL)
    events = ragged()
    before = np.asarray(run(model, events).hidden)
    for t in (3, 12):
        items, times = events.items.copy(), events.timestamps.copy()
        items[0, t] = items[0, t] % 50 + 1
        times[0, t:] += 10**6
        changed = dataclasses.replace(events, items=items, timestamps=times)
        after = np.asarray(run(model, changed).hidden)
        np.testing.assert_array_equal(after[0, :t], before[0, :t])
        assert np.abs(after[0, t:] - before[0, t:]).max(axis=1).min() > 1e-4


# ----------------------------------------------------------------------------------------- state


@pytest.mark.parametrize("cuts", [list(range(1, 20)), [1, 10, 11]])
@pytest.mark.parametrize("arm", ["full", "no memory"])
def test_in_parts_equals_the_whole_row(arm, cuts):
    """Rows end at different times: what comes after its last event leaves a row's state alone."""
    model, _ = random_model(dataclasses.replace(SMALL, **ARMS.get(arm, {})))
    events = with_times(make_events([[h] for h in random_histories([20, 7, 1, 0])], 20))
    whole = run(model, events)
    state, hidden = None, []
    for start, end in zip([0, *cuts], [*cuts, 20], strict=True):
        now = jax.tree.map(lambda x, s=start, e=end: x[:, s:e], events)
        encoding = run(model, now, state)
        state = encoding.state
        hidden.append(encoding.hidden)
    real = events.items > 0
    assert_close(np.concatenate(hidden, axis=1)[real], np.asarray(whole.hidden)[real], 1e-5)
    assert_states_equal(state, whole.state)


def test_bfloat16_goes_on_from_a_state_as_well():
    model, _ = random_model(dataclasses.replace(SMALL, loops=1, dtype="bfloat16"))
    events = with_times(make_events([random_histories([16])], 16))
    whole = np.asarray(run(model, events).hidden, np.float64)
    # Both parts are rows of 16 with padding, so that they and the whole are one program or two.
    early = np.arange(16) < 10
    head, tail = (jax.tree.map(lambda x, kept=kept: x * kept, events) for kept in (early, ~early))
    first = run(model, head)
    parts = first.hidden[:, :10], run(model, tail, first.state).hidden[:, 10:]
    hidden = np.concatenate([np.asarray(part, np.float64) for part in parts], axis=1)
    assert np.sqrt(np.mean((hidden - whole) ** 2) / np.mean(whole**2)) < 0.02


def test_the_state_goes_on_into_the_first_history_of_a_row_only():
    """Behind padding on its left, and with another history behind it."""
    model, _ = random_model(SMALL)
    first, second = random_histories([9, 6])
    whole = with_times(make_events([[first], [second]], 16))
    alone = run(model, whole)
    past = run(model, jax.tree.map(lambda x: x * (np.arange(16) < 4), whole)).state
    packed = make_events([[first[4:], second], []], 16, start=3, goes_on_from=[4, 0])
    times = np.zeros_like(packed.timestamps)
    times[0, 3:8], times[0, 8:14] = whole.timestamps[0, 4:9], whole.timestamps[1, :6]
    encoding = run(model, dataclasses.replace(packed, timestamps=times), past)
    assert_close(encoding.hidden[0, 3:8], alone.hidden[0, 4:9], 1e-5)
    assert_close(encoding.hidden[0, 8:14], alone.hidden[1, :6], 1e-5)
    found, expected = (
        jax.tree.map(lambda x, r=r: x[r], s)
        for s, r in [(encoding.state, slice(1)), (alone.state, slice(1, 2))]
    )
    assert_states_equal(found, expected)


def test_bfloat16_stays_near():
    """One loop, and no codes to choose between: rounding may choose another."""
    config = dataclasses.replace(SMALL, loops=1, codes=1, dtype="bfloat16")
    model, arrays = random_model(config)
    events = ragged()
    encoding = run(model, events)
    assert encoding.hidden.dtype == jnp.bfloat16
    assert {loss.dtype for loss in encoding.losses.values()} == {jnp.dtype("float32")}
    assert encoding.state.loops[0].mixer.memory.dtype == jnp.float32
    real = events.items > 0
    expected = sinkrec(config, arrays, events)[0][real]
    error = (encoding.hidden.astype(jnp.float32) @ model.item_table().T)[real] - expected
    assert np.sqrt(np.mean(error**2) / np.mean(expected**2)) < 0.05


def test_dropout_is_a_function_of_the_key_and_leaves_the_memory_alone():
    model, _ = random_model(dataclasses.replace(ONCE, dropout=0.3))
    first, again, other = (run(model, ragged(), dropout_key=jax.random.key(s)) for s in (0, 0, 1))
    np.testing.assert_array_equal(first.hidden, again.hidden)
    assert (np.abs(first.hidden - other.hidden).max(axis=(1, 2)) > 0.1).all()
    # To the last bit in one program; without dropout it is another, which may round otherwise.
    assert first.losses == other.losses
    for name, loss in run(model, ragged()).losses.items():
        assert float(first.losses[name]) == pytest.approx(float(loss), rel=1e-6)


def test_the_memory_has_a_dropout_of_its_own():
    """On what it reads, so that its losses change, and on what is read of it; not in evaluation."""
    model, arrays = random_model(dataclasses.replace(ONCE, dropout=0.0, memory_dropout=0.3))
    plain, _ = random_model(dataclasses.replace(ONCE, dropout=0.0))
    encoding, expected = run(model, ragged()), run(plain, ragged())
    np.testing.assert_array_equal(encoding.hidden, expected.hidden)
    first, other = (run(model, ragged(), dropout_key=jax.random.key(s)) for s in (0, 1))
    for name, loss in first.losses.items():
        assert len({float(loss), float(other.losses[name]), float(encoding.losses[name])}) == 3
    # Items without vectors: there is nothing to drop of what it reads.
    load_parameters(model, arrays | {"embedding/table": 0 * arrays["embedding/table"]})
    first, other = (run(model, ragged(), dropout_key=jax.random.key(s)) for s in (0, 1))
    assert first.losses == other.losses
    assert (np.abs(first.hidden - other.hidden).max(axis=(1, 2)) > 0.1).all()


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(width=15, heads=3), "width 15 must be even"),
        (dict(heads=5), "a multiple of heads 5"),
        (dict(loops=0), "loops is 0: it must be at least 1"),
        (dict(heads=0), "heads is 0"),
        (dict(attention_window=0), "attention_window is 0"),
        (dict(kernel=0), "kernel is 0"),
        (dict(memory_window=0), "memory_window is 0"),
        (
            dict(codebook="freeze"),
            "codebook is 'freeze'.* .did you mean 'frozen'",
        ),
        (dict(dilations=()), "dilations is .*one or more different whole numbers"),
        (dict(dilations=(0, 1)), "dilations is 0: it must be at least 1"),
        (dict(dilations=(2, 2)), "different"),
        (dict(dilations=(1, 2.5)), "dilations is 2.5: it must be a whole number"),
        (dict(memory_window=1), r"dilations \(1, 3\) are the same window"),
        (dict(quantization_weight=-0.1), "quantization_weight is -0.1"),
        (
            dict(quantization_weight=math.nan),
            "quantization_weight is nan: it must be a finite number",
        ),
        (dict(reconstruction_weight=math.inf), "reconstruction_weight is inf"),
        (dict(levels=0), "levels is 0"),
        (dict(memory_dropout=1.0), "memory_dropout is 1.0: it must be at least 0 and below 1"),
        (dict(codes=0), "codes is 0"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_settings_that_make_no_model_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **wrong)
