"""RecGRELA against float64 NumPy written from its equations; its switches, noise and state."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linseqrec.config import Experiment
from linseqrec.config_fields import ConfigError
from linseqrec.data.source import DataConfig
from linseqrec.layers import block, rela, standard
from linseqrec.layers.rela import RELA, LookupRELA, _phi, _ungated
from linseqrec.models import recgrela
from linseqrec.models.base import NoState
from linseqrec.models.recgrela import RecGRELAConfig
from linseqrec.models.weights import load_parameters, parameter_arrays
from tests.models import reference
from tests.models.reference import (
    assert_states_equal,
    jit,
    logits,
    make_events,
    random_histories,
    random_model,
    run,
)

SMALL = RecGRELAConfig(width=16, num_layers=2, dropout=0.0, drop_path=0.0, max_length=20)
RELEASED = dataclasses.replace(SMALL, causal=False)

# The paper's ablations and our selector: the config, and the module it adds or takes away.
SWITCHES = {
    "gate": (dict(gate=False), "blocks/{}/attention/gate"),
    "input_gate": (dict(input_gate=False), "blocks/{}/attention/input_gate"),
    "shortcut": (dict(shortcut=False), "blocks/{}/attention/shortcut"),
    "rotation": (dict(positions="none"), None),
    "learned": (dict(positions="learned"), "positions"),
    "absolute": (dict(positions="absolute"), None),
    "value": (dict(value_projection=True), "blocks/{}/attention/value"),
    "convex": (dict(selector="convex"), "blocks/{}/attention/selector"),
    "epsilon": (dict(epsilon=0.5), None),
    "norm_epsilon": (dict(norm_epsilon=0.1), None),
}


def ragged(time=20):
    """A full row, one with padding, one event, and two histories with padding between them."""
    full, part, one, first, second = random_histories([time, 11, 1, 6, 9])
    return make_events([[full], [part], [one], [first, second]], time, gap=2)


def assert_logits(model, expected, events, where=None):
    where = events.items >= 0 if where is None else where
    np.testing.assert_allclose(logits(model, events)[where], expected[where], atol=1e-5, rtol=1e-5)


# --------------------------------------------------------------------------- the released form


def test_released_form_reads_padding_and_slots_not_segments_and_positions():
    model, _ = random_model(RELEASED)
    [history] = random_histories([7])
    short, long = make_events([[history]], 8), make_events([[history]], 16)
    assert np.abs(logits(model, short)[0, 6] - logits(model, long)[0, 6]).max() > 1e-3
    changed = dataclasses.replace(
        long, segment_ids=np.ones_like(long.segment_ids), positions=long.positions + 3
    )
    np.testing.assert_array_equal(logits(model, long), logits(model, changed))


def test_released_form_carries_no_state():
    events = make_events([random_histories([5])], 5)
    state = run(random_model(SMALL)[0], events).state
    released = random_model(RELEASED)[0]
    assert run(released, events).state == NoState()
    with pytest.raises(ValueError, match="carries no state"):
        released(events, state)


def test_a_head_of_rotated_features_is_of_even_width():
    with pytest.raises(
        ConfigError, match="heads is 2: it must be a divisor of 25, half the width: ro"
    ):
        RecGRELAConfig(width=50, heads=2)
    RecGRELAConfig(width=50, heads=2, positions="none")


def test_released_form_trains_on_prefixes_only():
    with pytest.raises(ConfigError, match="data.plan.*'prefixes'"):
        Experiment(model=RELEASED, data=DataConfig(plan="packed"))
    Experiment(model=RELEASED, data=DataConfig(plan="prefixes"))


# ---------------------------------------------------------------------------------- both forms


@pytest.mark.parametrize("config", [SMALL, RELEASED], ids=["causal", "released"])
def test_the_logits_are_the_equations(config):
    model, arrays = random_model(config)
    events = ragged()
    where = events.items > 0 if config.causal else None
    assert_logits(model, reference.recgrela(config, arrays, events), events, where)


def test_a_lookup_is_the_equations():
    config = dataclasses.replace(SMALL, positions="none", lookup=True)
    model, arrays = random_model(config)
    events = ragged()
    assert_logits(model, reference.recgrela(config, arrays, events), events, events.items > 0)


@pytest.mark.parametrize("gap", [20, 100])
def test_a_fresh_lookup_reads_what_followed_the_last_item_before(gap):
    """Untrained: of 200 items, the one that followed the last item `gap` events ago."""
    rng = np.random.default_rng(0)
    items = rng.permuted(np.tile(np.arange(200), (64, 1)), axis=1)[:, :120]
    asked = 119 - gap
    items[:, 119] = items[:, asked]
    vectors = rng.normal(size=(200, 64)).astype(np.float32)
    ids, positions = np.ones_like(items), np.tile(np.arange(120), (64, 1))
    first = {}
    for lookup in (True, False):
        kind = LookupRELA if lookup else functools.partial(RELA, rotation=False)
        layer = kind(64, 1, shortcut=False, rngs=nnx.Rngs(0))
        # The gate would multiply what is read by noise of its own.
        layer.gate = _ungated
        output, _ = layer(vectors[items], ids, positions, layer.initial_state(64))
        best = np.argmax(np.asarray(output[:, 119]) @ vectors.T, axis=1)
        first[lookup] = np.mean(best == items[:, asked + 1])
    assert first[True] > 0.25 and first[False] < 0.1


@pytest.mark.parametrize("events", [5, 12, 200])
def test_a_fixed_denominator_counts_the_slots_that_a_history_has_not_filled(events):
    """5 and 12 slots are filled within the row of 20; 200 never are."""
    config = dataclasses.replace(SMALL, denominator_events=events)
    model, arrays = random_model(config)
    batch = ragged()
    expected = reference.recgrela(config, arrays, batch)
    assert_logits(model, expected, batch, batch.items > 0)
    without = reference.recgrela(SMALL, arrays, batch)
    young = (batch.items > 0) & (batch.positions < events - 1)
    assert (np.abs(expected - without)[young].max(-1) > 1e-3).all()


def test_a_fixed_denominator_divides_as_the_released_form_does():
    """Where padding holds a key of 0 the released form's last event has the same attention."""
    history, time = random_histories([7])[0], 20
    padded = make_events([[history]], time)
    table = np.random.default_rng(0).normal(size=(time, SMALL.width)).astype(np.float32)
    x = table * (padded.segment_ids[0] > 0)[:, None]
    outputs = {}
    for causal in (True, False):
        layer = RELA(
            SMALL.width,
            SMALL.heads,
            causal=causal,
            denominator_events=time if causal else None,
            shortcut=False,
            rngs=nnx.Rngs(0),
        )
        arrays = reference.randomise(layer)
        # Without biases a slot of zeros has the key and the value 0.
        load_parameters(layer, {k: v * (not k.endswith("bias")) for k, v in arrays.items()})
        ids = padded.segment_ids if causal else None
        outputs[causal], _ = layer(x[None], ids, padded.positions, layer.initial_state(1))
    np.testing.assert_allclose(outputs[True][0, 6], outputs[False][0, 6], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("causal", [True, False])
def test_the_published_setting_has_the_published_number_of_parameters(causal):
    make = lambda: RecGRELAConfig(causal=causal).build(3_416, rngs=nnx.Rngs(0))  # noqa: E731
    params = nnx.state(nnx.eval_shape(make), nnx.Param)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == 436_672


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("causal", [True, False])
def test_each_switch_changes_what_it_names(causal, switch):
    base = dataclasses.replace(SMALL, causal=causal, num_layers=1)
    overrides, module = SWITCHES[switch]
    config = dataclasses.replace(base, **overrides)
    model, arrays = random_model(config)
    events = ragged()
    expected = reference.recgrela(config, arrays, events)
    real = events.items > 0
    assert_logits(model, expected, events, real if causal else None)

    base_model, base_arrays = random_model(base)
    without = reference.recgrela(base, base_arrays | arrays, events)
    assert np.abs(expected - without)[real].max() > 0.01
    changed = {name.rpartition("/")[0] for name in set(arrays) ^ set(base_arrays)}
    assert changed == (set() if module is None else {module.format(0)})


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(width=18), "width 18 must be even and a multiple of heads 4"),
        (dict(width=15, heads=3), "width 15 must be even"),
        (dict(selector="convex", shortcut=False), "needs shortcut=True"),
        (dict(norm_epsilon=-1.0), "norm_epsilon is -1.0: it must be above 0"),
        (dict(denominator_events=0), "denominator_events is 0: it must be at least 1, or none"),
        (dict(denominator_events=9, causal=False), "denominator_events is 9.*causal=True"),
        (
            dict(lookup=True),
            "lookup is True: it must be False, or causal=True with other positions than 'rotary'",
        ),
        (dict(lookup=True, causal=False, positions="none"), "lookup is True"),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_settings_that_make_no_model_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        RecGRELAConfig(**wrong)


def test_the_feature_map_keeps_its_precision_in_bfloat16():
    """Below 0, where ELU + 1 would cancel."""
    x = jnp.linspace(-12, 3, 601).reshape(1, 1, -1).astype(jnp.bfloat16)
    exact = np.asarray(x, np.float64)
    exact = np.where(exact > 0, exact + 1, np.exp(np.minimum(exact, 0)))
    got = np.asarray(rela._phi(x), np.float64)
    np.testing.assert_allclose(got, exact, rtol=2**-7)


def test_bfloat16_stays_near():
    config = dataclasses.replace(SMALL, dtype="bfloat16")
    model, arrays = random_model(config)
    events = ragged()
    encoding = run(model, events)
    assert encoding.hidden.dtype == jnp.bfloat16
    sums = [layer.attention for layer in encoding.state.layers]
    assert {leaf.dtype for leaf in jax.tree.leaves(sums)} == {jnp.dtype("float32")}
    real = events.items > 0
    expected = reference.recgrela(config, arrays, events)[real]
    error = (encoding.hidden.astype(jnp.float32) @ model.item_table().T)[real] - expected
    assert np.sqrt(np.mean(error**2) / np.mean(expected**2)) < 0.03


def test_fresh_parameters_are_drawn_as_in_the_released_code():
    """N(0, 0.02²) for weights and embeddings, the padding row too; U(±1/√4) for the convolution."""
    model = RecGRELAConfig(num_layers=1, causal=False).build(300, rngs=nnx.Rngs(0))
    arrays = parameter_arrays(model)
    arrays["padding"] = arrays["embedding/table"][0]
    shortcut = [arrays.pop(f"blocks/0/attention/shortcut/{name}") for name in ("weight", "bias")]
    for array in shortcut:
        assert -0.5 <= array.min() < -0.4 and 0.4 < array.max() <= 0.5
    for name, array in arrays.items():
        if name.endswith("bias"):
            np.testing.assert_array_equal(array, 0)
        elif name.endswith("scale"):
            np.testing.assert_array_equal(array, 1)
        else:
            error = 4 * 0.02 / math.sqrt(array.size)
            assert abs(array.mean()) < error and abs(array.std() - 0.02) < error, name


def test_a_lookup_has_little_noise_of_other_layers_beside_it():
    config = RecGRELAConfig(num_layers=1, lookup=True, positions="none", heads=1)
    arrays = parameter_arrays(config.build(300, rngs=nnx.Rngs(0)))
    others = [name for name in arrays if name.endswith(("expand/kernel", "/gate/kernel", "table"))]
    for name in others:
        assert abs(arrays[name].std() - 0.02) < 0.001, name
    assert len(others) == 3


# ----------------------------------------------------------------------------------------- noise


def test_noise_is_a_function_of_the_key():
    model, _ = random_model(dataclasses.replace(SMALL, dropout=0.3, drop_path=0.3))
    events = ragged()
    first, again, other = (
        np.asarray(run(model, events, dropout_key=jax.random.key(seed)).hidden)
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (np.abs(first - other).max(axis=(1, 2)) > 0.1).all()


def test_drop_path_drops_whole_segments_of_the_attention_half_at_its_rate():
    config = dataclasses.replace(SMALL, drop_path=0.4)
    model, arrays = random_model(config)
    rows = 256
    history = random_histories([5])
    events = make_events([history] * rows, 5)
    hidden = run(model, events, dropout_key=jax.random.key(0)).hidden
    noisy = np.asarray(hidden @ model.item_table().T)

    one = make_events([history] * 4, 5)
    kept = np.array([[0, 0, 1, 1], [0, 1, 0, 1]])
    cases = reference.recgrela(config, arrays, one, path=kept / 0.6)
    distance = np.abs(noisy[:, None] - cases[None]).max((2, 3))
    assert (distance.min(axis=1) < 1e-4).all()
    rates = kept[:, distance.argmin(axis=1)].mean(axis=1)
    np.testing.assert_allclose(rates, 0.6, atol=4 * math.sqrt(0.24 / rows))

    # Two users in a row draw each for himself.
    packed = make_events([[history[0], history[0]]] * rows, 10)
    hidden = run(model, packed, dropout_key=jax.random.key(0)).hidden
    halves = np.asarray(hidden @ model.item_table().T).reshape(rows, 2, 1, 5, -1)
    distance = np.abs(halves - cases).max((3, 4))
    assert (distance.min(axis=2) < 1e-4).all()
    cases_drawn = distance.argmin(axis=2)
    assert abs((cases_drawn[:, 0] == cases_drawn[:, 1]).mean() - 0.2704) < 4 * math.sqrt(0.2 / rows)


def test_dropout_stands_where_the_equations_have_it(monkeypatch):
    config = dataclasses.replace(SMALL, dropout=0.3)
    model, arrays = random_model(config)
    keys = []

    def halve_odd_features(x, rate, key):
        assert rate == 0.3
        keys.append(key)
        return x * (1 - 0.5 * (jnp.arange(x.shape[-1]) % 2))

    monkeypatch.setattr(recgrela, "dropout", halve_odd_features)
    monkeypatch.setattr(block, "dropout", halve_odd_features)
    monkeypatch.setattr(standard, "dropout", halve_odd_features)
    events = ragged()

    @jit
    def encode(events):
        hidden = model(events, dropout_key=jax.random.key(0)).hidden
        return hidden, [jax.random.key_data(key) for key in keys]

    hidden, keys_data = encode(events)
    expected = reference.recgrela(
        config, arrays, events, drop=lambda x: x * (1 - 0.5 * (np.arange(x.shape[-1]) % 2))
    )
    real = events.items > 0
    np.testing.assert_allclose(
        np.asarray(hidden @ model.item_table().T)[real], expected[real], atol=1e-5, rtol=1e-5
    )
    assert len({np.asarray(key).tobytes() for key in keys_data}) == len(keys) == 1 + 2 * 2


# ----------------------------------------------------------------------------------------- state

STREAMING = {
    "published": SMALL,
    "fixed denominator": dataclasses.replace(SMALL, denominator_events=12),
    "lookup": dataclasses.replace(SMALL, positions="none", lookup=True),
    "learned positions, no shortcut": dataclasses.replace(
        SMALL, positions="learned", shortcut=False
    ),
}


@pytest.mark.parametrize("name", STREAMING)
def test_event_by_event_equals_the_whole_row(name):
    """Rows end at different times: what comes after its last event leaves a row's state alone."""
    model, _ = random_model(STREAMING[name])
    lengths = [20, 7, 1, 0]
    events = make_events([[history] for history in random_histories(lengths)], 20)
    whole = run(model, events)
    state, hidden = None, []
    for t in range(20):
        now = jax.tree.map(lambda x, t=t: x[:, t : t + 1], events)
        encoding = run(model, now, state)
        state = encoding.state
        hidden.append(encoding.hidden)
    real = events.items > 0
    hidden = np.concatenate(hidden, axis=1)
    np.testing.assert_allclose(hidden[real], whole.hidden[real], atol=1e-5, rtol=1e-5)
    assert_states_equal(state, whole.state)
    np.testing.assert_array_equal(state.length, lengths)


def test_a_row_may_be_split_anywhere():
    """Before and after a split the parts are padded, each on its own side."""
    model, _ = random_model(SMALL)
    histories = random_histories([12, 10, 11, 17])
    whole = run(model, make_events([[h] for h in histories], 20))
    for split in range(11):
        heads = [[h[:split]] for h in histories]
        first = run(model, make_events(heads, 20))
        np.testing.assert_array_equal(first.state.length, split)
        tails = make_events([[h[split:]] for h in histories], 20, start=3, goes_on_from=[split] * 4)
        second = run(model, tails, first.state)
        for row, history in enumerate(histories):
            rest = len(history) - split
            np.testing.assert_allclose(
                np.concatenate([first.hidden[row, :split], second.hidden[row, 3 : 3 + rest]]),
                whole.hidden[row, : len(history)],
                atol=1e-5,
                rtol=1e-5,
            )
        assert_states_equal(second.state, whole.state)


def test_the_state_goes_on_into_the_first_history_of_a_row_only():
    model, _ = random_model(SMALL)
    first, second = random_histories([9, 6])
    alone = run(model, make_events([[first], [second], [], []], 20))
    past = run(model, make_events([[first[:4]], [], [], []], 20)).state
    rows = [[first[4:], second], [second], [], []]
    packed = run(model, make_events(rows, 20, goes_on_from=[4, 0, 0, 0]), past)
    np.testing.assert_allclose(packed.hidden[0, :5], alone.hidden[0, 4:9], atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(packed.hidden[0, 5:11], alone.hidden[1, :6], atol=1e-5, rtol=1e-5)
    second_alone = jax.tree.map(lambda x: x[jnp.array([1, 1, 2, 3])], alone.state)
    assert_states_equal(packed.state, second_alone)


def test_the_features_have_the_slope_of_elu_at_zero():
    slopes = jax.grad(lambda x: jnp.sum(_phi(x)))(jnp.array([[[-0.5, 0, 2]]]))[0, 0]
    np.testing.assert_allclose(slopes, [np.exp(-0.5), 1, 1], rtol=1e-6)
