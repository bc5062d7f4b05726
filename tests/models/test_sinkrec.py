"""SinkRec against float64 NumPy written from its equations; its ablations, state and training."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linseqrec.config import EvaluationConfig, Experiment, TrainingConfig
from linseqrec.data.dataset import Dataset
from linseqrec.data.source import DataConfig, Source
from linseqrec.data.splits import leave_one_out
from linseqrec.layers.gated_delta_net import GatedDeltaMixer
from linseqrec.layers.temporal_relation_delta import TemporalRelationDelta
from linseqrec.models.sinkrec import SinkRecConfig
from linseqrec.models.weights import load_parameters, parameter_arrays
from linseqrec.training import loop
from linseqrec.training.checkpoint import Checkpoints
from linseqrec.training.run import Run
from linseqrec.training.workdir import read_metrics
from tests.models.reference import (
    gelu,
    hidden_states,
    jit,
    layer_norm,
    make_events,
    random_histories,
    random_model,
    run,
    sigmoid,
    silu,
)
from tests.ops.closeness import assert_close

SMALL = SinkRecConfig(
    width=12,
    heads=2,
    key_width=4,
    value_width=5,
    attention_window=6,
    feed_forward=2,
    dilations=(1, 3),
    levels=2,
    codes=8,
    gap_features=5,
    dropout=0.0,
    chunk_size=8,
)

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


def ragged(time=20, seed=0):
    """A full row, one with padding, one event, and two histories with padding between them; with
    gaps from a minute to years."""
    full, part, one, first, second = random_histories([time, 11, 1, 6, 9])
    return with_times(make_events([[full], [part], [one], [first, second]], time, gap=2), seed)


def with_times(events, seed=0):
    gaps = 60 * np.exp(np.random.default_rng(seed).uniform(0, 13, events.items.shape))
    times = np.cumsum(gaps, axis=1).astype(np.int32)
    return dataclasses.replace(events, timestamps=np.where(events.segment_ids > 0, times, 0))


# --------------------------------------------------------------------------------- the equations


def sinkrec(config, arrays, events):
    """Logits [B, T, N + 1], L_vq and L_rec: one history at a time, from the definition."""
    arrays = {name: np.float64(array) for name, array in arrays.items()}
    table = arrays["embedding/table"]
    logits = np.zeros((*events.items.shape, len(table)))
    vq, reconstruction = [], [[] for _ in config.dilations]
    for b, row in enumerate(events.segment_ids):
        for segment in np.unique(row[row > 0]):
            slots = np.flatnonzero(row == segment)
            embedded = np.sqrt(config.width) * table[events.items[b, slots]]
            days = np.diff(events.timestamps[b, slots].astype(np.int64)) / 86_400
            gaps = np.concatenate([[0.0], np.clip(days, 0, 3650)])
            memory = None
            if config.memory:
                memory, losses = read_memory(config, arrays, embedded)
                vq += losses[0]
                for window, missed in zip(reconstruction, losses[1], strict=True):
                    window += missed
            x = embedded
            for r in range(config.loops):
                name = f"blocks/{0 if config.shared else r}"
                x = block(config, arrays, name, x + arrays["loops"][r], gaps, memory)
            logits[b, slots] = rms(arrays, "norm", x) @ table.T
    sums = [np.sum(window, axis=0) for window in reconstruction if window]
    return logits, np.mean(vq or [0]), np.mean([missed / square for missed, square in sums] or [0])


def read_memory(config, arrays, embedded):
    """m [T, D], n [T, M, D/2], ρ [T]; L_vq, a number a window and event; what was missed of each
    window of each event, and its square."""
    time, width = embedded.shape
    vectors, slots, errors, vq = [], [], [], []
    reconstruction = [[] for _ in config.dilations]
    for s, dilation in enumerate(config.dilations):
        z_all, n_all, rho = [], [], []
        for t in range(time):
            places = [t - i * dilation for i in range(config.memory_window)]
            taps = np.array([embedded[p] if p >= 0 else np.zeros(width) for p in places])
            hidden = gelu(linear(arrays, f"memory/encoders/{s}", taps.reshape(-1)))
            z = linear(arrays, f"memory/projections/{s}", hidden)
            z = layer_norm(arrays, f"memory/norms/{s}", z, 1e-8)
            rest, chosen, loss = z, [], 0.0
            for level in range(config.levels):
                book = arrays["memory/codebooks"][s, level]
                code = book[((rest - book) ** 2).sum(axis=1).argmin()]
                loss += 1.25 * ((rest - code) ** 2).mean()
                rest = rest - code
                chosen.append(code)
            found = np.sum(chosen, axis=0)
            decoded = linear(arrays, f"memory/decoders/{s}", found).reshape(taps.shape)
            there = np.array([p >= 0 for p in places])[:, None]
            reconstruction[s].append([(there * (decoded - taps) ** 2).sum(), (taps**2).sum()])
            vq.append(loss)
            z_all.append(found)
            n_all.append(chosen)
            rho.append(((z - found) ** 2).sum() / (z**2).sum())
        vectors.append(z_all)
        slots.append(n_all)
        errors.append(rho)
    m = np.concatenate(vectors, axis=-1) @ arrays["memory/output/kernel"]
    n = np.concatenate(slots, axis=1) + arrays["memory/types"]
    return (m, n, np.mean(errors, axis=0)), (vq, reconstruction)


def block(config, arrays, name, h, gaps, memory):
    width = config.width
    if memory is not None and config.reinjection:
        key = rms(
            arrays,
            f"{name}/reinjection/key_norm",
            kernel(arrays, f"{name}/reinjection/key", memory[0]),
        )
        query = rms(arrays, f"{name}/reinjection/input_norm", h)
        share = sigmoid((key * query).sum(-1, keepdims=True) / np.sqrt(width))
        h = h + share * kernel(arrays, f"{name}/reinjection/value", memory[0])
    h = h + attention(
        config, arrays, f"{name}/attention", rms(arrays, f"{name}/attention_norm", h), memory
    )
    h = h + tdgd(
        config, arrays, f"{name}/mixer", rms(arrays, f"{name}/mixer_norm", h), gaps, memory
    )
    gate, value = np.split(
        kernel(arrays, f"{name}/feed_forward/expand", rms(arrays, f"{name}/feed_forward_norm", h)),
        2,
        -1,
    )
    return h + kernel(arrays, f"{name}/feed_forward/contract", silu(gate) * value)


def attention(config, arrays, name, x, memory):
    mixed = kernel(arrays, f"{name}/query_key_value", x)
    if config.attention_convolution:
        mixed = convolution(arrays, name, mixed)
    q, k, v = np.split(mixed, 3, axis=-1)
    output = np.zeros_like(x)
    slots = memory is not None and config.memory_key_values
    if slots:
        mk, mv = np.split(kernel(arrays, f"{name}/memory_key_value", memory[1]), 2, axis=-1)
    for t in range(len(x)):
        seen = slice(max(0, t - config.attention_window + 1), t + 1)
        for head in np.split(np.arange(config.width), config.heads):
            keys, values = k[seen, head], v[seen, head]
            if slots:
                keys = np.vstack([keys, mk[t][:, head]])
                values = np.vstack([values, mv[t][:, head]])
            weights = np.exp(keys @ q[t, head] / np.sqrt(len(head)))
            output[t, head] = weights @ values / weights.sum()
    return kernel(arrays, f"{name}/output", output)


def convolution(arrays, name, x):
    weight = arrays[f"{name}/convolution/weight"]
    mixed = np.zeros_like(x)
    for t in range(len(x)):
        for back in range(min(len(weight), t + 1)):
            mixed[t] += weight[-1 - back] * x[t - back]
    return silu(mixed)


def tdgd(config, arrays, name, x, gaps, memory):
    heads, dk, dv = config.heads, config.key_width, config.value_width
    mixed = convolution(arrays, name, kernel(arrays, f"{name}/query_key_value", x))
    q, k, v = np.split(mixed, [heads * dk, 2 * heads * dk], axis=-1)
    if config.temporal_addressing:
        u = np.log1p(gaps)[:, None] * 2.0 ** np.arange(8) * np.pi / np.log(3651)
        phi = np.hstack([np.sin(u), 1 - np.cos(u)]) @ arrays["gap_features/projection/kernel"]
        shift = kernel(arrays, f"{name}/address", phi)
        q, k = q + shift[:, : heads * dk], k + shift[:, heads * dk :]
    q, k = unit(q.reshape(-1, heads, dk)), unit(k.reshape(-1, heads, dk))
    v = v.reshape(-1, heads, dv)
    softplus = np.log1p(
        np.exp(kernel(arrays, f"{name}/decay_gate", x) + arrays[f"{name}/step_bias"])
    )
    log_a = -np.exp(arrays[f"{name}/log_rate"]) * softplus
    if config.temporal_decay:
        log_a = log_a - gaps[:, None] / np.exp(arrays[f"{name}/log_horizon"])
    beta = sigmoid(kernel(arrays, f"{name}/write_gate", x))
    if memory is not None and (config.write_gate == "memory" or config.read_removal):
        km = unit(kernel(arrays, f"{name}/memory_key", memory[0]).reshape(-1, heads, dk))
        both = np.hstack([x, memory[0]])
    if memory is not None and config.write_gate == "memory":
        w1, w2 = arrays[f"{name}/coverage_weights"]
        alike = np.maximum((k * km).sum(-1), 0)
        gate = w1 * alike + w2 * (1 - memory[2])[:, None]
        gate = gate + kernel(arrays, f"{name}/coverage_gate", both)
        beta = beta * (1 - sigmoid(gate + arrays[f"{name}/coverage_bias"]))
    elif config.write_gate == "input":
        gate = kernel(arrays, f"{name}/coverage_gate", x) + arrays[f"{name}/coverage_bias"]
        beta = beta * (1 - sigmoid(gate))
    if memory is not None and config.read_removal:
        gate = kernel(arrays, f"{name}/removal_gate", both) + arrays[f"{name}/removal_bias"]
        q = q - sigmoid(gate)[..., None] * km
    output = np.zeros((len(x), heads, dv))
    for head in range(heads):
        state = np.zeros((dk, dv))
        for t in range(len(x)):
            state = state * np.exp(log_a[t, head])
            key = k[t, head]
            state = state + np.outer(key, beta[t, head] * (v[t, head] - state.T @ key))
            output[t, head] = state.T @ q[t, head] / np.sqrt(dk)
    output = rms(arrays, f"{name}/norm", output, 1e-5).reshape(len(x), -1)
    return kernel(arrays, f"{name}/output", output * silu(kernel(arrays, f"{name}/output_gate", x)))


def kernel(arrays, name, x):
    return x @ arrays[f"{name}/kernel"]


def linear(arrays, name, x):
    return kernel(arrays, name, x) + arrays[f"{name}/bias"]


def rms(arrays, name, x, epsilon=1e-6):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * arrays[f"{name}/scale"]


def unit(x):
    return x / np.sqrt((x**2).sum(-1, keepdims=True) + 1e-6)


def logits(model, encoding):
    return np.asarray(encoding.hidden @ model.item_table().T)


# Arms are told apart on one loop: a test's time is compilation.
ONCE = dataclasses.replace(SMALL, loops=1)


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
        _, full = random_model(ONCE)
        same = {
            name: array for name, array in full.items() if array.shape == np.shape(arrays.get(name))
        }
        mine, _, _ = sinkrec(config, arrays | same, events)
        others, _, _ = sinkrec(ONCE, full, events)
        assert np.abs(mine - others)[real].max() > 0.01


def test_loss_weights_and_no_reconstruction():
    events = ragged()
    model, arrays = random_model(ONCE)
    base = run(model, events)
    weighted = dataclasses.replace(ONCE, quantization_weight=0.3, reconstruction_weight=0.2)
    twin = weighted.build(50, rngs=nnx.Rngs(0))
    load_parameters(twin, arrays)
    losses = run(twin, events).losses
    assert losses["vq"] == pytest.approx(3 * float(base.losses["vq"]), rel=1e-5)
    assert losses["reconstruction"] == pytest.approx(
        2 * float(base.losses["reconstruction"]), rel=1e-5
    )
    bare = dataclasses.replace(ONCE, reconstruction_weight=0.0).build(50, rngs=nnx.Rngs(0))
    kept = {name: a for name, a in arrays.items() if "decoders" not in name}
    load_parameters(bare, kept)
    assert set(run(bare, events).losses) == {"vq"}
    np.testing.assert_array_equal(hidden_states(bare, events), hidden_states(model, events))


def test_a_fresh_model_is_the_memory_free_backbone_up_to_its_gates():
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
    ours = TemporalRelationDelta(12, 2, **MIXER, **parts, rngs=nnx.Rngs(1))
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
    reading = random_model(SMALL)[0].memory(x, jnp.asarray(events.segment_ids))[0]
    mine, expected = (
        jit(functools.partial(mixer, segment_ids=jnp.asarray(events.segment_ids), **given))(x)
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
    twin = still.build(50, rngs=nnx.Rngs(0))
    names = parameter_arrays(twin)
    load_parameters(twin, {name: array for name, array in arrays.items() if name in names})
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


def assert_states_equal(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("cuts", [list(range(1, 20)), [1, 8, 10]])
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


def test_the_state_goes_on_into_the_first_history_of_a_row_only():
    """Behind padding on its left, and with another history behind it."""
    model, _ = random_model(SMALL)
    first, second = random_histories([9, 6])
    whole = with_times(make_events([[first], [second]], 9))
    alone = run(model, whole)
    head = jax.tree.map(lambda x: x[:1, :4], whole)
    past = run(model, head).state
    packed = make_events([[first[4:], second]], 16, start=3, goes_on_from=[4])
    times = np.zeros_like(packed.timestamps)
    times[0, 3:8], times[0, 8:14] = whole.timestamps[0, 4:9], whole.timestamps[1, :6]
    encoding = run(model, dataclasses.replace(packed, timestamps=times), past)
    assert_close(encoding.hidden[0, 3:8], alone.hidden[0, 4:9], 1e-5)
    assert_close(encoding.hidden[0, 8:14], alone.hidden[1, :6], 1e-5)
    assert_states_equal(encoding.state, jax.tree.map(lambda x: x[1:], alone.state))


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
    model, _ = random_model(dataclasses.replace(SMALL, dropout=0.3))
    first, again, other = (run(model, ragged(), dropout_key=jax.random.key(s)) for s in (0, 0, 1))
    np.testing.assert_array_equal(first.hidden, again.hidden)
    assert (np.abs(first.hidden - other.hidden).max(axis=(1, 2)) > 0.1).all()
    assert first.losses == run(model, ragged()).losses


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
        (dict(dilations=(0, 1)), "each at least 1"),
        (dict(dilations=(2, 2)), "different"),
        (dict(dilations=(1, 2.5)), "whole numbers"),
        (dict(memory_window=1), r"dilations \(1, 3\) are the same window"),
        (dict(quantization_weight=-0.1), "quantization_weight is -0.1"),
        (dict(quantization_weight=math.nan), "a number of at least 0"),
        (dict(reconstruction_weight=math.inf), "reconstruction_weight is inf"),
        (
            dict(
                reinjection=False, memory_key_values=False, write_gate="input", read_removal=False
            ),
            "nothing reads the memory .*write_gate='input'.* set memory=False",
        ),
        (dict(loops=1, shared=False), "shared=False changes nothing with loops=1"),
        (dict(levels=0), "levels is 0"),
        (dict(codes=0), "codes is 0"),
    ],
)
def test_settings_that_make_no_model_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **wrong)


# -------------------------------------------------------------------------------------- training


@functools.cache
def small_run(parts=1, mesh=None):
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 20, 40)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = rng.integers(1, 25, offsets[-1]).astype(np.int32)
    dataset = Dataset.from_arrays(items, np.arange(offsets[-1]) * 10**5, offsets, 24)
    return Run.of(
        Experiment(
            # One window and one pass: compiling a step of more takes most of a minute.
            model=dataclasses.replace(SMALL, dilations=(1,), loops=1),
            data=DataConfig(length=16, batch_size=8),
            training=TrainingConfig(
                num_epochs=1.0, evaluate_every=1, log_every=1, accumulation_steps=parts
            ),
            evaluation=EvaluationConfig(batch_size=16),
        ),
        Source(dataset, leave_one_out(dataset), None),
        mesh,
    )


def by_name(made, params):
    return parameter_arrays(nnx.merge(made.graphdef, params, made.rest))


def test_a_step_seeds_the_codebooks_and_counts_their_use():
    made = small_run()
    before = by_name(made, made.initial_params)
    state, metrics = made.train_step(made.initial_state(), made.batches[0])
    after = by_name(made, state.params)
    assert (after["memory/codebooks"] != before["memory/codebooks"]).all()
    np.testing.assert_array_equal(after["memory/usage"], 0.25)
    assert {"loss/vq", "loss/reconstruction", "perplexity/4x1/0", "quantization_error/4x1"} <= set(
        metrics
    )
    state, _ = made.train_step(state, made.batches[1])
    again = by_name(made, state.params)
    # Alive: they move by a step of the optimizer, not to another event.
    moved = np.abs(again["memory/codebooks"] - after["memory/codebooks"])
    assert moved.max() < 2e-3
    assert (again["memory/usage"] != 0.25).all()


def test_accumulation_takes_means_of_losses_and_metrics_and_adds_counts_up():
    """By what the parts give before the update; they hold unlike numbers of events, so that a mean
    of shares would not do."""
    made = small_run(parts=2)
    state, _ = made.train_step(made.initial_state(), made.batches[0])
    params = jax.tree.map(jnp.copy, state.params)
    batch = made.batches[1]
    model = nnx.merge(made.graphdef, params, made.rest)
    halves = [
        run(model, jax.tree.map(lambda x, half=half: x[half], batch.events))
        for half in (slice(0, 4), slice(4, 8))
    ]
    counts = np.sum([half.counts for half in halves], axis=0)
    assert counts.sum() == SMALL.levels * (batch.events.items > 0).sum()
    assert halves[0].counts.sum() != halves[1].counts.sum()
    state, metrics = made.train_step(state, batch)
    shares = counts / counts.sum(-1, keepdims=True) * SMALL.codes
    usage = by_name(made, state.params)["memory/usage"]
    assert_close(usage, 0.98 * 0.25 + 0.02 * shares, 1e-6)
    for name in halves[0].losses:
        mean = np.mean([half.losses[name] for half in halves])
        assert_close(metrics[f"loss/{name}"], mean, 1e-5)
    for name in halves[0].metrics:
        assert_close(metrics[name], np.mean([half.metrics[name] for half in halves]), 1e-5)


def test_frozen_codebooks_are_never_seeded():
    model = dataclasses.replace(SMALL, codebook="frozen").build(24, rngs=nnx.Rngs(0))
    before = parameter_arrays(model)
    model.after_step(ragged(), run(model, ragged()).counts, jax.random.key(0))
    for name, array in parameter_arrays(model).items():
        np.testing.assert_array_equal(array, before[name])


def test_a_step_that_is_not_finite_leaves_the_codes_alone():
    made = small_run()
    state, _ = made.train_step(made.initial_state(), made.batches[0])
    before = by_name(made, state.params)
    bad = dataclasses.replace(made.batches[1], weights=made.batches[1].weights * np.nan)
    state, _ = made.train_step(state, bad)
    assert bool(state.halted)
    for name, array in by_name(made, state.params).items():
        np.testing.assert_array_equal(array, before[name])


def out_of_use(state):
    """With a usage by which every code dies at the next step."""
    usage = state.params["memory"]["usage"]
    usage[...] = usage[...] * 0 + 0.01
    return state


def test_a_run_resumes_where_it_was_and_logs_the_perplexities(tmp_path):
    """Codebooks, their usage and the draws of new codes among it."""
    made = small_run()
    whole, _ = loop.train(made, tmp_path / "run")
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        restored = checkpoints.restore(checkpoints.resolve("latest"), made.initial_state())
    first, _ = made.train_step(out_of_use(jax.tree.map(jnp.copy, whole)), made.batches[0])
    second, _ = made.train_step(out_of_use(restored), made.batches[0])
    moved = by_name(made, first.params)["memory/codebooks"]
    assert np.abs(moved - by_name(made, whole.params)["memory/codebooks"]).max() > 0.1
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(one, other)
    records = [r for r in read_metrics(tmp_path / "run") if "train/perplexity/4x1/1" in r]
    assert records and all(1 <= r["train/perplexity/4x1/1"] <= 8 for r in records)
    assert all(math.isfinite(r["train/loss/vq"]) for r in records)
