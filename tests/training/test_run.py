import dataclasses

import jax
import numpy as np
import pytest

from linseqrec.data.dataset import Dataset
from linseqrec.data.source import DataConfig, Source
from linseqrec.data.splits import leave_one_out
from linseqrec.evaluation import queries
from linseqrec.models.hytrec import HyTRecConfig
from linseqrec.models.sinkrec import SinkRecConfig
from linseqrec.training.run import Run


@pytest.mark.parametrize(
    ("batch_size", "length", "devices", "rows"),
    [
        (256, 200, 1, 256),
        (256, 1_536, 1, 42),  # 64,512 slots
        (256, 1_536, 4, 168),  # as many on each of four
        (8, 200_000, 1, 1),  # at least one history, however long
        (10, 200, 4, 8),  # dealt out evenly
        (2, 200, 4, 4),
    ],
)
def test_histories_at_once(batch_size, length, devices, rows):
    assert queries.rows_at_once(batch_size, length, devices) == rows


def test_a_run_evaluates_long_histories_in_smaller_batches_with_the_same_result(
    make_run, experiment, monkeypatch
):
    def evaluate():
        run, shapes = make_run(experiment), set()
        params = run.model.fresh()[0]

        def encode(events):
            shapes.add(events.items.shape)
            return run.model.encode(params, events)

        return run.evaluator("test").run(encode, run.model.item_table(params)), shapes

    whole, shapes = evaluate()
    assert shapes == {(16, 16)}
    monkeypatch.setattr(queries, "SLOTS_AT_ONCE", 3 * 16)
    parts, shapes = evaluate()
    assert shapes == {(3, 16)}
    for name, ranks in whole.ranks.items():
        np.testing.assert_array_equal(ranks, parts.ranks[name])


@pytest.mark.parametrize("causal", [True, False])
def test_narrow_rows_change_no_rank_of_a_model_that_reads_padding(
    make_run, experiment, monkeypatch, causal
):
    """Evaluation narrows rows of short histories, but not those of the released RecGRELA."""
    model = dataclasses.replace(experiment.model, causal=causal)
    data = dataclasses.replace(experiment.data, plan="packed" if causal else "prefixes")
    changed = dataclasses.replace(experiment, model=model, data=data)
    rng = np.random.default_rng(0)

    def ranks(worth):
        monkeypatch.setattr(queries, "SLOTS_WORTH_A_COMPILATION", worth)
        run, widths = make_run(changed), set()
        params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), run.model.fresh()[0])

        def encode(events):
            widths.add(events.items.shape[1])
            return run.model.encode(params, events)

        result = run.evaluator("test").run(encode, run.model.item_table(params))
        return result.ranks["none"], widths

    wide, widths = ranks(10_000)
    assert widths == {16}
    rng = np.random.default_rng(0)
    narrow, widths = ranks(1)
    assert (len(widths) > 1) == causal
    np.testing.assert_array_equal(narrow, wide)


def test_whole_histories_are_read_whole(make_run, experiment, source):
    """`length=0` evaluates as a length does that holds every history, from the first event on."""
    data = {"batch_size": 2}
    whole = make_run(experiment, data=data | {"length": 0})
    assert whole.batches.length == 64 > np.diff(source.dataset.offsets).max()
    # Each user is in one piece.
    pieces = whole.batches._epoch(0).pieces
    np.testing.assert_array_equal(
        np.sort(pieces.lengths), np.sort(np.diff(source.dataset.offsets) - 3)
    )
    long = make_run(experiment, data=data | {"length": 64})
    short = make_run(experiment, data=data | {"length": 4})
    # Fresh parameters are small, and the context hardly matters.
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), whole.model.fresh()[0])
    ranks = {
        name: run.evaluate(params, "test").ranks["none"]
        for name, run in {"whole": whole, "long": long, "short": short}.items()
    }
    np.testing.assert_array_equal(ranks["whole"], ranks["long"])
    assert (ranks["whole"] != ranks["short"]).any()
    assert whole.evaluate(params, "test").protocol["max_length"] == 64


@pytest.mark.parametrize(("longest", "length"), [(1, 64), (63, 64), (64, 64), (65, 128)])
def test_whole_histories_fill_chunks_of_the_delta_rule(longest, length):
    dataset = Dataset.from_arrays(
        np.ones(longest + 1, int), np.arange(longest + 1), [0, 1, longest + 1]
    )
    assert DataConfig(length=0).row_length(dataset) == length
    assert DataConfig(length=5).row_length(dataset) == 5


def test_a_log_without_times_trains_no_model_that_reads_them(experiment):
    dataset = Dataset.from_arrays([1, 2, 3, 4] * 2, [0, 1, 2, 3] * 2, [0, 4, 8], order_only=True)
    source = Source(dataset, leave_one_out(dataset), None)

    def make(model):
        return Run.of(dataclasses.replace(experiment, name="It", model=model), source)

    reading = {
        "time='gaps'": HyTRecConfig(),
        "time='shuffled'": HyTRecConfig(time="shuffled"),
        "temporal_addressing=True": SinkRecConfig(temporal_decay=False),
        "temporal_decay=True": SinkRecConfig(temporal_addressing=False),
        "temporal_addressing=True temporal_decay=True": SinkRecConfig(),
    }
    for settings, model in reading.items():
        with pytest.raises(ValueError, match=rf"^It reads the time .* \(model {settings}\), but"):
            make(model)
    for fields in (
        {"time": "positions"},
        {"time": "none"},
        {"branches": "short"},
        {"ratio": "0:1"},
    ):
        make(HyTRecConfig(**fields))
    make(SinkRecConfig(temporal_addressing=False, temporal_decay=False))


def test_a_run_of_endless_epochs_has_a_number_of_steps(make_run, experiment):
    """`training.max_minutes` may end it long before."""
    optimizer = {"schedule": "late_decay", "learning_rate": 0.25}
    run = make_run(experiment, training={"num_epochs": 1e12}, optimizer=optimizer)
    assert float(run.learning_rate(1000)) == 0.25
