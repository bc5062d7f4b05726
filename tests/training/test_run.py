import numpy as np
import pytest

from linseqrec.evaluation import queries


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
        params = run.initial_params

        def encode(events):
            shapes.add(events.items.shape)
            return run.encode(params, events)

        return run.evaluator("test").run(encode, run.item_table(params)), shapes

    whole, shapes = evaluate()
    assert shapes == {(16, 16)}
    monkeypatch.setattr(queries, "SLOTS_AT_ONCE", 3 * 16)
    parts, shapes = evaluate()
    assert shapes == {(3, 16)}
    for name, ranks in whole.ranks.items():
        np.testing.assert_array_equal(ranks, parts.ranks[name])
