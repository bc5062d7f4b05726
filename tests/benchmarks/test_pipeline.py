"""The pipeline suite counts events, not slots."""

from linseqrec.benchmarks import pipeline
from linseqrec.data.splits import leave_one_out


def test_windows_and_packed_rows_of_an_epoch_hold_the_same_events():
    rows = list(pipeline.rows(repeats=1, num_users=40))
    tokens = {row.variant: row.extra["tokens"] for row in rows if "tokens" in row.extra}
    split = leave_one_out(pipeline._log(40))
    # Every training event but each user's last is an input, once.
    inputs = split.description["training_events"] - 40
    assert len(tokens) == 4
    assert [count for name, count in tokens.items() if "prefixes" not in name] == [inputs] * 3
