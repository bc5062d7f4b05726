"""Writes recommendations for users of a run's data set to a file, for any model.

    python -m launch.recommend --workdir=runs/quick --all --top_k=20 --output=lists.parquet
    python -m launch.recommend --workdir=runs/quick --users=17,39 --split=none --output=next.csv

The file has one row per recommended item, with these columns:

    user, item        the log's own ids
    rank, score       the place in the list, from 1, and the model's score
    history_length    number of the user's events before the list
    target            the user's next item (not with --split=none)
    target_rank       the target's rank in the whole catalogue, as launch.evaluate computes it, with
                      --items too (not with --split=none)

A list without items has one row, in which rank, item and score are empty.

A .csv file has a ' before each id that a spreadsheet would run as a formula: one that begins with
= + - @ or a tab and is no number. A .parquet file has the ids as they are.

A run with data.request_time=known needs the time of each request. With a split it is the time of
the target. With --split=none, give it with --now=SECONDS, on the log's own clock.
"""

from pathlib import Path
from typing import cast

import polars as pl
from absl import flags

from launch.flags import define_data
from launch.program import run_program
from linseqrec.config_fields import ConfigError
from linseqrec.data.histories import (
    Before,
    find_users,
    flag_items,
    histories_before,
    request_times,
)
from linseqrec.evaluation.lists import for_spreadsheets, lists_table, recommend_after
from linseqrec.evaluation.queries import rows_at_once
from linseqrec.files import replacing
from linseqrec.training import saved_run
from linseqrec.training.checkpoint import Checkpoints
from linseqrec.training.run import Run

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
_DATA = define_data()
_USERS = flags.DEFINE_string(
    "users", "", "Users by the log's own ids: ID,ID or @FILE with one id per line."
)
_ALL = flags.DEFINE_bool("all", False, "Recommend to every user with a history for --split.")
_SPLIT = flags.DEFINE_enum(
    "split",
    "test",
    ["validation", "test", "none"],
    "Recommend from the events before this split's targets; `none`: from all events of a user.",
)
_TOP_K = flags.DEFINE_integer("top_k", 20, "Number of items in a list.", 1)
_NOW = flags.DEFINE_integer(
    "now",
    None,
    "Time of the requests in seconds, on the log's own clock. Required with --split=none if the "
    "run has data.request_time=known; not allowed otherwise.",
)
_ITEMS = flags.DEFINE_string(
    "items", "", "Recommend these items only, by the log's own ids: ID,ID or @FILE. Empty: all."
)
_EXCLUDE = flags.DEFINE_string(
    "exclude", "", "Recommend none of these items, by the log's own ids: ID,ID or @FILE."
)
_FILTER_SEEN = flags.DEFINE_bool("filter_seen", False, "Leave out items of the user's history.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "`best`, `latest`, or a step.")
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "Maximum number of users per batch. [default: as in the run]", 1
)
_OUTPUT = flags.DEFINE_string("output", None, "The .parquet or .csv file to write.", required=True)


def main(_: list[str]) -> None:
    folder, output = Path(_WORKDIR.value), Path(_OUTPUT.value)
    if output.suffix not in (".parquet", ".csv"):
        raise ConfigError(f"--output={output}: the name must end in .parquet or .csv")
    if bool(_USERS.value) == _ALL.value:
        raise ConfigError("give either --users=ID,ID (or --users=@FILE) or --all")
    requested_ids = [] if _ALL.value else read_ids("users", _USERS.value)
    allowed_ids = set(read_ids("items", _ITEMS.value)) if _ITEMS.value else set()
    experiment = saved_run.read_experiment(folder)
    run = Run.of(experiment, saved_run.load_data(folder, _DATA.value))
    dataset, before = run.source.dataset, cast(Before, _SPLIT.value)
    if _TOP_K.value > dataset.num_items:
        raise ConfigError(
            f"--top_k={_TOP_K.value}: the catalogue has {dataset.num_items} items; give at most "
            "that number"
        )
    user_ids, item_ids = dataset.user_ids(), dataset.item_ids()
    requested_users = find_users(requested_ids, user_ids) if requested_ids else None
    allowed = flag_items(allowed_ids, item_ids) if allowed_ids else None
    if _EXCLUDE.value:
        excluded_ids = set(read_ids("exclude", _EXCLUDE.value))
        excluded = flag_items(excluded_ids, item_ids)
        if missing := len(excluded_ids - set(item_ids)):
            print(f"{missing} of {len(excluded_ids)} --exclude are not in the data set")
        allowed = ~excluded if allowed is None else allowed & ~excluded
    users, ends = histories_before(dataset, run.source.split, before, requested_users)
    known = experiment.data.request_time == "known"
    requests = request_times(dataset, before, ends, known=known, now=_NOW.value)

    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        step = checkpoints.resolve(_CHECKPOINT.value)
        variables = checkpoints.restore_variables(step, run.model, experiment.optimizer)
    lists = recommend_after(
        dataset,
        users,
        ends,
        lambda events: run.model.encode(variables, events),
        run.model.item_table(variables),
        top_k=_TOP_K.value,
        max_length=run.batches.length,
        padded_lengths=run.padded_lengths,
        batch_size=rows_at_once(
            _BATCH_SIZE.value or experiment.evaluation.batch_size, run.batches.length
        ),
        filter_seen=_FILTER_SEEN.value,
        allowed=allowed,
        rank_next=before != "none",
        ties=experiment.evaluation.ties,
        request_times=requests,
    )
    write(lists_table(lists, dataset, users, ends, user_ids, item_ids), output)
    print(f"checkpoint {step}: wrote {len(users)} lists to {output}")
    if allowed_ids and (missing := len(allowed_ids - set(item_ids))):
        print(f"{missing} of {len(allowed_ids)} --items are not in the data set: no list has them")


def read_ids(flag: str, value: str) -> list[str]:
    """The ids in the value of a flag: ID,ID or @FILE with one id per line.

    Raises:
      ConfigError: The file cannot be read, or there is no id.
    """
    if value.startswith("@"):
        try:
            parts = Path(value[1:]).read_text(encoding="utf-8-sig").split("\n")
        except OSError as error:
            raise ConfigError(f"--{flag}={value}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"--{flag}={value}: the file is no UTF-8 text") from error
    else:
        parts = [part.strip() for part in value.split(",")]
    ids = [part for part in parts if part]
    if not ids:
        raise ConfigError(f"--{flag}={value} has no id: write ID,ID or one id per line of a file")
    return ids


def write(frame: pl.DataFrame, output: Path) -> None:
    """Writes a table in one step, so that other programs never read half a file."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(output) as partial:
        if output.suffix == ".parquet":
            frame.write_parquet(partial)
        else:
            for_spreadsheets(frame).write_csv(partial)


if __name__ == "__main__":
    run_program(main)
