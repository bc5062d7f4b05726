"""The pipeline suite counts events, not slots, and runs the training loop itself."""

import functools

import pytest

from linseqrec.benchmarks import pipeline
from linseqrec.data.splits import leave_one_out


@pytest.fixture(scope="module")
def rows():
    """The suite's rows, of 40 users and of a loop of 40 steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "loop", functools.partial(pipeline.loop, num_steps=40))
        return list(pipeline.rows(repeats=1, num_users=40))


def test_windows_and_packed_rows_of_an_epoch_hold_the_same_events(rows):
    tokens = {row.variant: row.extra["tokens"] for row in rows if "tokens" in row.extra}
    split = leave_one_out(pipeline._log(40))
    # Every training event but each user's last is an input, once.
    inputs = split.description["training_events"] - 40
    assert len(tokens) == 4
    assert [count for name, count in tokens.items() if "prefixes" not in name] == [inputs] * 3


def test_the_loops_time_holds_that_of_the_steps_call(rows):
    rows = {row.variant: row for row in rows if row.case.startswith("the training loop")}
    assert list(rows) == ["loop", "of it: the step's call", "beside it: making a batch"]
    for row in rows.values():
        low, high = row.quartiles
        assert 0 < low <= row.seconds <= high and row.processor_seconds > 0
    loop, call, _ = rows.values()
    assert call.processor_seconds < loop.processor_seconds
