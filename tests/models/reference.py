"""RecGRELA in float64 NumPy, written from the paper's equations and not from our code; and random
parameters and events to compare the two on."""

import dataclasses
import functools
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from linseqrec.events import Events
from linseqrec.models.weights import load_parameters
from linseqrec.sharding import parameter_path


def random_model(config, *, num_items=50, seed=0):
    """A model whose every parameter matters: (model, its arrays)."""
    model = abstract_model(config, num_items=num_items)
    return model, randomise(model, seed=seed)


def abstract_model(config, *, num_items=50):
    """A model whose variables have shapes and dtypes only."""
    # The compute dtype may depend on the backend.
    return nnx.merge(*_structure(config, num_items, jax.default_backend()), copy=True)


@functools.cache
def _structure(config, num_items, backend):
    del backend

    def build():
        rngs = nnx.Rngs(0)
        rngs.default = SameKey(0, tag="default")
        return config.build(num_items, rngs=rngs)

    return nnx.split(nnx.eval_shape(build))


class SameKey(nnx.RngStream):
    """Gives the same key each time: to count keys is half of the time of an abstract build."""

    def __call__(self):
        return self.key[...]


def randomise(model, *, seed=0):
    """Draws every parameter of a model or a layer anew, wide; returns the arrays."""
    rng, arrays = np.random.default_rng(seed), {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(nnx.state(model)):
        name, draw = parameter_path(path), rng.normal(size=leaf.shape)
        kind = name.rsplit("/")[-1]
        if kind == "scale":
            arrays[name] = 1 + 0.2 * draw
        elif kind == "kernel":
            arrays[name] = draw / math.sqrt(len(draw))
        else:
            arrays[name] = 0.4 * draw
    load_parameters(model, arrays)
    return arrays


def make_events(rows, time, *, start=0, gap=0, goes_on_from=None):
    """Rows of histories, each a list of items, as `Events` of `time` slots.

    `start` and `gap` are the padding before the first history and between histories;
    `goes_on_from` is how many events of each row's first history came before.
    """
    items, segments, positions = np.zeros((3, len(rows), time), np.int32)
    for b, row in enumerate(rows):
        slot = start
        for number, history in enumerate(row):
            first = goes_on_from[b] if goes_on_from is not None and number == 0 else 0
            end = slot + len(history)
            assert end <= time
            items[b, slot:end], segments[b, slot:end] = history, number + 1
            positions[b, slot:end] = first + np.arange(len(history))
            slot = end + gap
    return Events(items, 60 * positions * (segments > 0), segments, positions)


def random_histories(lengths, *, num_items=50, seed=0):
    """One list of items a length."""
    rng = np.random.default_rng(seed)
    return [rng.integers(1, num_items + 1, length).tolist() for length in lengths]


def run(model, events, state=None, dropout_key=None):
    """The model under `jax.jit`: its `Encoding`."""
    graphdef, params = nnx.split(model)
    return _apply(graphdef, params, jax.tree.map(jnp.asarray, events), state, dropout_key)


def _apply(graphdef, params, events, state, dropout_key):
    return nnx.merge(graphdef, params)(events, state, dropout_key=dropout_key)


# Half of these tests' time is compilation, and optimised code saves none of it.
_OPTIONS = {"xla_backend_optimization_level": 0}
jit = functools.partial(jax.jit, compiler_options=_OPTIONS)
_apply = jit(_apply, static_argnums=0)


# A history, for models whose equations need nothing but items.
ITEMS = np.random.default_rng(0).integers(1, 51, 17)


def assert_hidden_states(config, equations, *, atol=2e-5):
    """A model's hidden states are `equations(arrays, items, config)`, in float64."""
    model, arrays = random_model(config)
    hidden = run(model, make_events([[ITEMS]], len(ITEMS))).hidden[0]
    np.testing.assert_allclose(hidden, equations(arrays, ITEMS, config), atol=atol)


def assert_bfloat16_stays_near(config, equations):
    """In bfloat16 they are within 3 % of their size."""
    model, arrays = random_model(dataclasses.replace(config, dtype="bfloat16"))
    hidden = run(model, make_events([[ITEMS]], len(ITEMS))).hidden[0]
    expected = equations(arrays, ITEMS, config)
    missed = np.asarray(hidden, np.float64) - expected
    assert np.sqrt(np.mean(missed**2) / np.mean(expected**2)) < 3e-2


def assert_states_equal(first, second):
    """Two states of one model, alike in structure and types, and near in value."""
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, atol=1e-4, rtol=1e-5)


def hidden_states(model, events):
    """The model's hidden states, compiled without its losses, and as users have it compiled.

    For models of which one computes what the other does and something more, which changes nothing:
    without fusion emitters, which `conftest.py` turns off, the two round apart.
    """
    graphdef, params = nnx.split(model)
    off = "--xla_cpu_use_fusion_emitters=false" in os.environ.get("XLA_FLAGS", "")
    compiled = jit(
        lambda params, events: nnx.merge(graphdef, params)(events).hidden,
        compiler_options=_OPTIONS | ({"xla_cpu_use_fusion_emitters": True} if off else {}),
    )
    return np.asarray(compiled(params, jax.tree.map(jnp.asarray, events)))


def logits(model, events):
    """The scores of all slots over the whole catalogue, [B, T, N + 1]."""
    return np.asarray(run(model, events).hidden @ model.item_table().T)


# --------------------------------------------------------------------------------- the equations


def recgrela(config, arrays, events, *, path=None, drop=lambda x: x):
    """RecGRELA's logits [B, T, N + 1].

    Args:
      path: [L, B], what each row's attention half is multiplied by in each block; None is 1.
      drop: Stands for every dropout.
    """
    batch, time = events.items.shape
    table = arrays["embedding/table"]
    slots = np.broadcast_to(np.arange(time), (batch, time))
    positions = events.positions if config.causal else slots
    x = table[events.items]
    if config.positions == "learned":
        x = x + arrays["positions/table"][positions]
    if config.positions == "absolute":
        half = config.width // 2
        for i in range(half):
            angle = positions / 10_000 ** (i / half)
            x[..., i] += np.sin(angle)
            x[..., half + i] += np.cos(angle)
    x = layer_norm(arrays, "norm", drop(x), config.norm_epsilon)
    visible = np.ones((batch, time, time), bool)
    if config.causal:
        visible = visible_slots(events.segment_ids)
    for i in range(config.num_layers):
        name = f"blocks/{i}"
        normed = layer_norm(arrays, f"{name}/attention_norm", x, config.norm_epsilon)
        mixed = rela(config, arrays, f"{name}/attention", normed, positions, visible)
        x = x + (mixed if path is None else mixed * path[i][:, None, None])
        normed = layer_norm(arrays, f"{name}/feed_forward_norm", x, config.norm_epsilon)
        hidden = drop(gelu(dense(arrays, f"{name}/feed_forward/expand", normed)))
        x = x + drop(dense(arrays, f"{name}/feed_forward/contract", hidden))
    return x @ table.T


def rela(config, arrays, name, h, positions, visible):
    time, width, heads = h.shape[1], config.width, config.heads
    x = dense(arrays, f"{name}/input_gate", h) if config.input_gate else h
    keyed = x
    if config.lookup:
        # The event before is visible where there is one of the same history.
        before = np.diagonal(visible, -1, 1, 2)[..., None] * x[:, :-1]
        older, current = arrays[f"{name}/key_taps"]
        keyed = older * np.pad(before, ((0, 0), (1, 0), (0, 0))) + current * x
    q = elu_plus_one(dense(arrays, f"{name}/query_key", x)[..., :width])
    k = elu_plus_one(dense(arrays, f"{name}/query_key", keyed)[..., width:])
    turned = (lambda y: rotate(y, positions)) if config.positions == "rotary" else lambda y: y
    v = dense(arrays, f"{name}/value", x) if config.value_projection else x
    output = np.zeros_like(x)
    for head in np.split(np.arange(width), heads):
        scores = np.einsum("bmd,bnd->bmn", turned(q)[..., head], turned(k)[..., head])
        if config.causal:
            norms = np.einsum("bmd,bnd,bmn->bm", q[..., head], k[..., head], visible)
            if config.denominator_events is not None:
                # Every history fills N slots: those that it has not reached hold a key of 0.
                empty = np.maximum(config.denominator_events - visible.sum(-1), 0)
                norms = norms + empty * (q[..., head] @ elu_plus_one(np.zeros(len(head))))
            numerator = np.einsum("bmn,bmn,bnd->bmd", scores, visible, v[..., head])
        else:
            # As the released code has it: K and V over the root of N, the mean key below.
            norms = np.einsum("bmd,bd->bm", q[..., head], k[..., head].mean(axis=1))
            root = math.sqrt(time)
            numerator = np.einsum("bmn,bnd->bmd", scores / root, v[..., head] / root)
        output[..., head] = numerator / (norms + config.epsilon)[..., None]
    if config.shortcut:
        weight = arrays[f"{name}/shortcut/weight"]
        local = np.broadcast_to(arrays[f"{name}/shortcut/bias"], x.shape).copy()
        for t in range(time):
            for back in range(min(len(weight), t + 1)):
                seen = visible[:, t, t - back, None]
                local[:, t] += seen * weight[len(weight) - 1 - back] * x[:, t - back]
        local = silu(local)
        if config.selector == "convex":
            share = sigmoid(dense(arrays, f"{name}/selector", h))
            output = share * output + (1 - share) * local
        else:
            output = output + local
    if config.gate:
        output = silu(dense(arrays, f"{name}/gate", h)) * output
    return dense(arrays, f"{name}/output", output)


def visible_slots(segment_ids):
    """[B, m, n]: whether slot n is of m's history, and not later."""
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    real = segment_ids[:, :, None] > 0
    return same & real & np.tri(segment_ids.shape[1], dtype=bool)


def rotate(x, positions):
    """Pair t = (2t, 2t + 1), as a complex number, turned by position · 10000^(−t / (D/2))."""
    pairs = x[..., 0::2] + 1j * x[..., 1::2]
    rates = 10_000.0 ** (-np.arange(pairs.shape[-1]) / pairs.shape[-1])
    pairs = pairs * np.exp(1j * positions[..., None] * rates)
    return np.stack([pairs.real, pairs.imag], axis=-1).reshape(x.shape)


def dense(arrays, name, x):
    return x @ arrays[f"{name}/kernel"] + arrays[f"{name}/bias"]


def layer_norm(arrays, name, x, epsilon):
    centred = x - x.mean(-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
    return normed * arrays[f"{name}/scale"] + arrays[f"{name}/bias"]


def rms_norm(arrays, name, x, epsilon):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * arrays[f"{name}/scale"]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def elu_plus_one(x):
    return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))


def gelu(x):
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2
