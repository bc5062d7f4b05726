"""The models suite, with models that compile quickly in the place of the large ones."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linseqrec.benchmarks import models
from linseqrec.models.base import Encoding, ModelConfig, SequenceModel
from linseqrec.models.gated_deltanet import GatedDeltaNetConfig
from linseqrec.models.sasrec import SASRecConfig
from linseqrec.models.sinkrec import SinkRecConfig


@dataclasses.dataclass(frozen=True)
class LookupConfig(ModelConfig):
    """A model whose gradient is known: it only looks embeddings up."""

    def build(self, num_items, *, rngs):
        return Lookup(num_items, rngs)


class Lookup(SequenceModel):
    def __init__(self, num_items, rngs):
        self.table = nnx.Param(rngs.params.normal((num_items + 1, 2), jnp.float32))

    def encode(self, events, state, *, dropout_key):
        return Encoding(self.table[...][events.items])


def test_rows_count_the_tokens_of_their_batch(monkeypatch):
    monkeypatch.setattr(models, "_FORWARD_LENGTHS", (5,))
    monkeypatch.setattr(models, "_FORWARD_TOKENS", 64)
    monkeypatch.setattr(models, "_BACKWARD_LENGTHS", (40,))
    monkeypatch.setattr(models, "_BACKWARD_TOKENS", 30)
    monkeypatch.setattr(models, "_SINKREC_LENGTHS", (16, 128))
    monkeypatch.setattr(models, "_hybrids", lambda length: {"one": SASRecConfig(8, 1, 1)})
    monkeypatch.setattr(models, "_sinkrecs", lambda: {"other": LookupConfig()})
    found = list(models.rows(repeats=1))
    *timed, fit = found
    assert [row.case.split(", D")[0] for row in found] == [
        "HyTRec, forward, T 5, B 12",
        "HyTRec, forward + backward, T 40, B 1",
        "SinkRec, forward, T 16, B 1",
        "SinkRec, forward, T 128, B 1",
        "SinkRec, forward by length, B 1",
    ]
    tokens = [row.extra["tokens_per_second"] * row.seconds for row in timed]
    assert tokens == pytest.approx([60, 40, 16, 128])
    processed = [row.extra["tokens_per_processor_second"] * row.processor_seconds for row in timed]
    assert processed == pytest.approx([60, 40, 16, 128])
    assert timed[1].extra["temporary_bytes"] > 0
    # Between two lengths the fitted line is the chord.
    slope = np.log(timed[3].seconds / timed[2].seconds) / np.log(128 / 16)
    assert fit.variant == "other, exponent of T"
    assert fit.extra == pytest.approx({"time": slope})


def test_ratios_are_compared_at_equal_width_and_depth_and_all_events_means_all():
    for length in (1_024, 1_025):
        first, *hybrids = configs = models._hybrids(length).values()
        assert first == GatedDeltaNetConfig()
        assert {(config.width, config.heads, config.num_layers) for config in configs} == {
            (64, 2, 4)
        }
        long = {config.ratio: config.block_windows()[0] for config in hybrids}
        assert long["1:0"] == [None] * 4 and long["0:1"] == [length] * 4
        of_default = [c.attention_window for c in hybrids if c.ratio == "3:1"]
        # The default's window makes a difference only where a history is longer.
        assert of_default == ([1_024] if length == 1_024 else [1_024, 1_025])


def test_the_memorys_cost_is_of_the_default_memory():
    memories = models._sinkrecs()
    assert memories["with the memory"] == SinkRecConfig(64, 2, key_width=32, value_width=32)
    without = dataclasses.replace(memories["with the memory"], memory=False)
    assert memories["without the memory"] == without


def test_histories_are_whole_rows_in_the_order_of_time():
    events = models._events(3, 50)
    assert np.all((np.asarray(events.items) >= 1) & (np.asarray(events.items) <= models._ITEMS))
    assert np.all(np.diff(events.timestamps) >= 0) and np.all(events.segment_ids == 1)
    np.testing.assert_array_equal(events.positions, [np.arange(50)] * 3)
    # 12,000 events at half a day each stay within int32 seconds.
    assert np.all(np.diff(models._events(1, 12_000).timestamps) >= 0)


def test_the_gradient_is_that_of_the_sum_of_squares():
    program, params = models._program(LookupConfig(), gradient=True)
    events = models._events(2, 20)
    value, gradient = program(params, events)
    table = np.asarray(params["table"][...])
    uses = np.bincount(np.ravel(events.items), minlength=len(table))
    assert float(value) == pytest.approx(np.sum(uses[:, None] * table**2), rel=1e-5)
    np.testing.assert_allclose(gradient["table"][...], 2 * uses[:, None] * table, rtol=1e-5)
