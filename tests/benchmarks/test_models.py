"""The models suite, with models that compile quickly in the place of the large ones."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linseqrec.benchmarks import models
from linseqrec.models.base import Encoding, ModelConfig, SequenceModel
from linseqrec.models.sasrec import SASRecConfig


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
    monkeypatch.setattr(models, "_FORWARD_LENGTHS", (5, 20))
    monkeypatch.setattr(models, "_FORWARD_TOKENS", 64)
    monkeypatch.setattr(models, "_BACKWARD_LENGTHS", (40,))
    monkeypatch.setattr(models, "_BACKWARD_TOKENS", 30)
    made = {"lookup": LookupConfig(), "SASRec": SASRecConfig(8, 1, 1)}
    monkeypatch.setattr(models, "_configs", lambda length: made)
    found = list(models.rows(repeats=1))
    assert [(row.case.split(", D")[0], row.variant) for row in found] == [
        (case, name)
        for case in (
            "forward, T 5, B 12",
            "forward, T 20, B 3",
            "forward, by length",
            "forward + backward, T 40, B 1",
        )
        for name in made
    ]
    timed = [row for row in found if row.seconds is not None]
    tokens = [row.extra["tokens_per_second"] * row.seconds for row in timed]
    assert tokens == pytest.approx([60, 60, 60, 60, 40, 40])
    processed = [row.extra["tokens_per_processor_second"] * row.processor_seconds for row in timed]
    assert processed == pytest.approx(tokens)
    assert timed[-1].extra["temporary_bytes"] > 0
    # Between two lengths the fitted line is the chord: the time of a row, not of a token.
    costs = [row.processor_seconds / 60 for row in timed if row.variant == "SASRec"][:2]
    slope = np.log(costs[1] / costs[0]) / np.log(20 / 5)
    of_growth = {row.variant: row.extra for row in found if "by length" in row.case}
    assert of_growth["SASRec"] == pytest.approx({"exponent of T": slope + 1})
    assert set(of_growth["lookup"]) == {"exponent of T", "cheaper than SASRec from T"}


@pytest.mark.parametrize(
    ("first", "second", "length"),
    [
        ({100: 1.0, 400: 1.0}, {100: 0.5, 400: 2.0}, 200),
        ({100: 1.0, 400: 1.0}, {100: 2.0, 400: 4.0}, 100),
        ({100: 1.0, 400: 1.0}, {100: 0.5, 400: 0.9}, "beyond 400"),
        # Cheaper, dearer, and cheaper again: the length from which it stays cheaper.
        ({10: 1.0, 100: 1.0, 1_000: 1.0}, {10: 2.0, 100: 0.1, 1_000: 10.0}, 316),
    ],
    ids=["between", "everywhere", "nowhere", "at last"],
)
def test_a_model_is_cheaper_from_the_length_where_it_stays_so(first, second, length):
    assert models.cheaper_from(first, second) == length


def test_models_are_compared_at_equal_width_and_depth_and_all_events_means_all():
    for length in (1_024, 1_025):
        configs = models._configs(length)
        assert {config.width for config in configs.values()} == {64}
        depths = {getattr(config, "num_layers", 4) for config in configs.values()}
        assert depths == {4}
        for config in configs.values():
            assert config.longest_row is None or config.longest_row >= length
        assert configs["HyTRec 3:1, all events"].attention_window == length
        # The default's window makes a difference only where a history is longer.
        assert ("HyTRec 3:1, last 1,024 events" in configs) == (length > 1_024)
    memory = configs["SinkRec"]
    assert configs["SinkRec without its memory"] == dataclasses.replace(memory, memory=False)


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
