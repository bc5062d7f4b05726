"""What every causal model must hold: the future, padding, neighbours and batches change nothing."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from linseqrec.events import Events
from linseqrec.models.gated_deltanet import GatedDeltaNetConfig
from linseqrec.models.hytrec import HyTRecConfig
from linseqrec.models.recgrela import RecGRELAConfig
from linseqrec.models.sasrec import SASRecConfig
from linseqrec.models.sinkrec import SinkRecConfig

NUM_ITEMS = 40
MODELS = {
    "gated deltanet": GatedDeltaNetConfig(
        width=16, heads=2, num_layers=2, key_width=8, value_width=8, chunk_size=8
    ),
    "recgrela": RecGRELAConfig(width=16, heads=2, num_layers=2),
    "recgrela convex": RecGRELAConfig(width=16, heads=2, num_layers=2, selector="convex"),
    "recgrela fixed denominator": RecGRELAConfig(
        width=16, heads=2, num_layers=2, denominator_events=12
    ),
    "recgrela learned": RecGRELAConfig(width=16, heads=2, num_layers=2, positions="learned"),
    "hytrec": HyTRecConfig(
        width=16, heads=2, short_events=5, short_layers=1, num_layers=2, ratio="1:1"
    ),
    "hytrec timed": HyTRecConfig(
        width=16,
        heads=2,
        short_events=5,
        short_layers=1,
        num_layers=2,
        ratio="1:1",
        timed_attention=True,
    ),
    "sasrec": SASRecConfig(width=16, heads=2, num_layers=2),
    "sinkrec": SinkRecConfig(
        width=16, heads=2, dilations=(1, 3), levels=2, codes=8, attention_window=6, chunk_size=8
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def encode(request):
    """A model as a function from rows of histories to hidden states, weights drawn wide."""
    model = MODELS[request.param].build(NUM_ITEMS, rngs=nnx.Rngs(0))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    # At the initial scale of 0.02 a leak would hide below the tolerance.
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda p: p + 0.2 * rng.normal(size=p.shape).astype(p.dtype), params)
    forward = jax.jit(lambda events: nnx.merge(graphdef, params, rest)(events).hidden)
    return lambda events: np.asarray(forward(events))


def events(*rows):
    """Rows as lists of histories; None is a slot of padding."""
    items, times, segments, positions = [], [], [], []
    for row in rows:
        item, time, segment, position = [], [], [], []
        for index, history in enumerate(row):
            length = 1 if history is None else len(history)
            item += [0] if history is None else list(history)
            segment += [0 if history is None else index + 1] * length
            position += [0] if history is None else list(range(length))
            # Gaps of hours to weeks, years after the neighbour before, noise at padding.
            hours = np.cumsum([2 ** (1 + 5 * slot % 8) for slot in range(length)])
            time += list((index + 1) * 10**8 + 3600 * hours)
        items.append(item)
        times.append(time)
        segments.append(segment)
        positions.append(position)
    fields = [np.array(field, np.int32) for field in (items, times, segments, positions)]
    return Events(*fields)


def history(length, seed):
    return np.random.default_rng(seed).integers(1, NUM_ITEMS + 1, length)


def test_the_future_is_not_read(encode):
    one = history(17, 0)
    other = one.copy()
    other[9] = other[9] % NUM_ITEMS + 1
    first, second = encode(events([one])), encode(events([other]))
    np.testing.assert_array_equal(first[0, :9], second[0, :9])
    assert np.abs(first[0, 9:] - second[0, 9:]).max(axis=1).min() > 1e-4


def test_future_times_are_not_read(encode, request):
    """A month later from event 9 on: models that read no times do not see it at all."""
    one = events([history(17, 0)])
    times = one.timestamps.copy()
    times[0, 9:] += 30 * 86_400
    first, second = encode(one), encode(dataclasses.replace(one, timestamps=times))
    np.testing.assert_array_equal(first[0, :9], second[0, :9])
    difference = np.abs(first[0, 9:] - second[0, 9:]).max(axis=1)
    if request.node.callspec.params["encode"] in ("hytrec", "hytrec timed", "sinkrec"):
        assert difference.max() > 1e-4
    else:
        assert difference.max() == 0


def test_padding_changes_nothing(encode):
    one = history(11, 1)
    bare = encode(events([one]))[0]
    pad = [None] * 6
    right, left, around = (
        encode(events([one, *pad]))[0, :11],
        encode(events([*pad, one]))[0, 6:],
        encode(events([*pad[:2], one, *pad[:4]]))[0, 2:13],
    )
    for padded in (right, left, around):
        np.testing.assert_allclose(padded, bare, atol=3e-5)


def test_a_packed_row_equals_its_parts(encode):
    parts = [history(length, length) for length in (7, 1, 12)]
    packed = encode(events([parts[0], None, parts[1], parts[2], None]))[0]
    slots = ((0, 7), (8, 9), (9, 21))
    for part, (start, end) in zip(parts, slots, strict=True):
        np.testing.assert_allclose(packed[start:end], encode(events([part]))[0], atol=3e-5)


def test_the_batch_changes_nothing(encode):
    rows = [[history(13, seed)] for seed in range(5)]
    together = encode(events(*rows))
    for index, row in enumerate(rows):
        np.testing.assert_allclose(encode(events(row))[0], together[index], atol=3e-5)
