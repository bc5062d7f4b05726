"""Recommends to users of a run's data set from their histories, whatever the model is.

    python -m launch.recommend --workdir=runs/quick --all --top_k=20 --output=lists.parquet
    python -m launch.recommend --workdir=runs/quick --users=17,39 --split=none --output=next.csv

A row is an item of a list: `user` and `item` (the log's own ids), `rank` from 1, `score`, and
`history_length`, the user's events before the list. With a split also `target`, the item that came
next, and `target_rank`, its rank in the whole catalogue, of which launch.evaluate's metrics are
made. A user to whom nothing can be recommended has one row without an item.

A run whose data.request_time is known is told when a list is asked for: the target's own time, or
with --split=none `--now=SECONDS`, on the log's own clock.
"""

from pathlib import Path
from typing import cast

import polars as pl
from absl import flags

from launch.flags import define_data
from launch.program import run_program
from linseqrec.config_checks import ConfigError
from linseqrec.data.requests import (
    Before,
    find_users,
    histories_before,
    original_ids,
    request_times,
)
from linseqrec.evaluation.lists import lists_table, recommend_after
from linseqrec.evaluation.queries import rows_at_once
from linseqrec.files import replacing
from linseqrec.training import workdir
from linseqrec.training.checkpoint import Checkpoints
from linseqrec.training.run import Run

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
_DATA = define_data()
_USERS = flags.DEFINE_string("users", "", "The log's own ids: ID,ID or @FILE, one a line.")
_ALL = flags.DEFINE_bool("all", False, "Every user who has such a history.")
_SPLIT = flags.DEFINE_enum(
    "split",
    "test",
    ["validation", "test", "none"],
    "Recommend after the events before these targets; `none`: after all events of a user.",
)
_TOP_K = flags.DEFINE_integer("top_k", 20, "Items a list.", 1)
_NOW = flags.DEFINE_integer(
    "now",
    None,
    "When the lists are asked for, in the log's own seconds: where the run's data.request_time is "
    "known and --split=none. With a split it is the target's own time.",
)
_FILTER_SEEN = flags.DEFINE_bool("filter_seen", False, "Leave out items of the user's history.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "`best`, `latest`, or a step.")
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "Users a batch at most; unset: as in the run.", 1
)
_OUTPUT = flags.DEFINE_string("output", None, "A .parquet or .csv file.", required=True)


def main(_: list[str]) -> None:
    folder, output = Path(_WORKDIR.value), Path(_OUTPUT.value)
    if output.suffix not in (".parquet", ".csv"):
        raise ConfigError(f"--output={output}: it must end in .parquet or .csv")
    if bool(_USERS.value) == _ALL.value:
        raise ConfigError("give either --users=ID,ID (or --users=@FILE) or --all")
    named = [] if _ALL.value else read_ids(_USERS.value)
    experiment = workdir.read_experiment(folder)
    run = Run.of(experiment, workdir.load_data(folder, _DATA.value))
    dataset, before = run.source.dataset, cast(Before, _SPLIT.value)
    if _TOP_K.value > dataset.num_items:
        raise ConfigError(f"--top_k={_TOP_K.value}: the catalogue has {dataset.num_items} items")
    user_ids, item_ids = original_ids(dataset)
    asked = find_users(named, user_ids) if named else None
    users, ends = histories_before(dataset, run.source.split, before, asked)
    known = experiment.data.request_time == "known"
    requests = request_times(dataset, before, ends, known=known, now=_NOW.value)

    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        step = checkpoints.resolve(_CHECKPOINT.value)
        params = checkpoints.restore_params(step, run.model.initial_params)
    lists = recommend_after(
        dataset,
        users,
        ends,
        lambda events: run.model.encode(params, events),
        run.model.item_table(params),
        top_k=_TOP_K.value,
        max_length=run.batches.length,
        batch_size=rows_at_once(
            _BATCH_SIZE.value or experiment.evaluation.batch_size, run.batches.length
        ),
        filter_seen=_FILTER_SEEN.value,
        rank_next=before != "none",
        ties=experiment.evaluation.ties,
        request_times=requests,
    )
    write(lists_table(lists, dataset, users, ends, user_ids, item_ids), output)
    print(f"checkpoint {step}; lists after {len(users)} histories written to {output}")


def read_ids(users: str) -> list[str]:
    """The ids that `--users` names."""
    if not users.startswith("@"):
        return users.split(",")
    try:
        lines = Path(users[1:]).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"--users={users}: {error.strerror}") from error
    ids = [line for line in lines if line]
    if not ids:
        raise ConfigError(f"--users={users}: the file holds no id")
    return ids


def write(frame: pl.DataFrame, output: Path) -> None:
    """Writes a table in one move, so that no reader sees half a file."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(output) as partial:
        if output.suffix == ".parquet":
            frame.write_parquet(partial)
        else:
            frame.write_csv(partial)


if __name__ == "__main__":
    run_program(main)
