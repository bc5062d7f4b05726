r"""Turns a raw log into a dataset folder and prints its card.

    python -m launch.prepare --input=ratings.csv --output=data/ml

The log is a file in one of the formats of `linseqrec.data.readers.FORMATS`, plain or gzip, or a
folder of Parquet files. Spark prepares a log that is too large for one machine, with the same
result:

    python -m launch.prepare --engine=spark --spark_master=spark://HOST:7077 \
        --spark_conf=spark.executor.memory=16g --input=/shared/log --output=data/log
"""

from typing import Any

from absl import app, flags

from launch.flags import define_folder
from launch.program import run_program
from linseqrec.data import filters
from linseqrec.data.prepare import TIED_ORDERS, prepare
from linseqrec.data.readers import FORMATS, spark
from linseqrec.data.readers.formats import TIME_UNITS
from linseqrec.data.writing import format_card

_INPUT = flags.DEFINE_string("input", None, "The log file, or a folder of Parquet.", required=True)
_OUTPUT = define_folder("output", "The dataset folder to write.", required=True)
_FORMAT = flags.DEFINE_enum(
    "format",
    None,
    list(FORMATS),
    "\n".join(
        ["Format of the log. Unset: detected from the first lines of the file."]
        + [f"{name}: {log_format.description}" for name, log_format in FORMATS.items()]
    ),
)
_COLUMNS = flags.DEFINE_list(
    "columns",
    [],
    "Column of each role: user=..,item=..,timestamp=..,rating=..,behaviour=..,fold=... A column "
    "is a name, or a position from 0 in a file without header.",
    allow_overwrite=False,
)
_TIME_UNIT = flags.DEFINE_enum(
    "time_unit",
    None,
    list(TIME_UNITS),
    "Unit of the times. `order`: the log has no times, its lines are in time order. Unset: the "
    "unit of the format, or detected from the values; numbers that look like something else than "
    "times are then refused.",
)
_SEPARATOR = flags.DEFINE_string(
    "separator",
    None,
    "Text between two fields of a CSV file: one ASCII character, possibly repeated; \\t is a tab. "
    "Unset: a comma, tab, semicolon or pipe, as the first line has it.",
)
_DROP_MISSING = flags.DEFINE_bool(
    "drop_missing",
    False,
    "Drop events without a user id, an item id or a time; with --min_rating, also events without a "
    "rating.",
)
_TIME_RANGE = flags.DEFINE_list(
    "time_range", [], "FIRST,END: keep events with FIRST <= time < END, in seconds."
)
_MIN_RATING = flags.DEFINE_float("min_rating", None, "Keep events with at least this rating.")
_BEHAVIOURS = flags.DEFINE_list(
    "behaviours",
    [],
    "Keep events with one of these behaviours, such as buy,cart.",
    allow_overwrite=False,
)
_USER_CORE = flags.DEFINE_integer(
    "user_core",
    1,
    "Smallest number of events of a user. Applied with item_core until both hold.",
    1,
)
_ITEM_CORE = flags.DEFINE_integer(
    "item_core",
    1,
    "Smallest number of events of an item. Applied with user_core until both hold.",
    1,
)
_DUPLICATES = flags.DEFINE_enum(
    "duplicates",
    "keep",
    list(filters.DUPLICATES),
    "Which of several events with the same user, item and time to keep. `keep`: all of them. "
    "`error`: refuse the log.",
)
_TIED_ORDER = flags.DEFINE_enum(
    "tied_order",
    "log",
    list(TIED_ORDERS),
    "Order of a user's events of equal time: as in the log, or random, drawn once.",
)
_ENGINE = flags.DEFINE_enum("engine", "polars", ["polars", "spark"], "Engine of the preparation.")
_SPARK_MASTER = flags.DEFINE_string(
    "spark_master",
    None,
    "Where Spark runs: local[8], spark://HOST:7077, yarn, ... Unset: Spark's own configuration.",
)
_SPARK_CONF = flags.DEFINE_multi_string(
    "spark_conf", [], "A Spark setting, NAME=VALUE, such as spark.executor.memory=16g."
)


def _columns() -> dict[str, str | int]:
    pairs = [entry.partition("=") for entry in _COLUMNS.value]
    if not all(role and column for role, _, column in pairs):
        raise app.UsageError(
            f"--columns={','.join(_COLUMNS.value)} must be role=column pairs: type "
            "--columns=user=..,item=..,timestamp=.."
        )
    roles = [role for role, _, _ in pairs]
    for role in roles:
        if roles.count(role) > 1:
            raise app.UsageError(
                f"--columns={','.join(_COLUMNS.value)} names two columns for the {role}: give each "
                f"role one column, {role}=COLUMN"
            )
    return {role: int(column) if column.isdecimal() else column for role, _, column in pairs}


def _time_range() -> tuple[float, float] | None:
    if not _TIME_RANGE.value:
        return None
    try:
        first, end = map(float, _TIME_RANGE.value)
    except ValueError:
        raise app.UsageError(
            f"--time_range={','.join(_TIME_RANGE.value)} must be two numbers in seconds: type "
            "--time_range=FIRST,END"
        ) from None
    if not first < end:
        raise app.UsageError(
            f"--time_range={','.join(_TIME_RANGE.value)}: FIRST must be smaller than END. It keeps "
            "events with FIRST <= time < END."
        )
    return first, end


def _spark_session() -> Any:
    if _ENGINE.value == "polars":
        if _SPARK_MASTER.value or _SPARK_CONF.value:
            raise app.UsageError(
                "--spark_master and --spark_conf need --engine=spark, but --engine is polars. Add "
                "--engine=spark, or leave them out."
            )
        return None
    settings = {}
    for entry in _SPARK_CONF.value:
        name, separator, value = entry.partition("=")
        if not name or not separator:
            raise app.UsageError(
                f"--spark_conf={entry} must be NAME=VALUE: type "
                "--spark_conf=spark.executor.memory=16g"
            )
        settings[name] = value
    return spark.start_session(_SPARK_MASTER.value, settings)


def main(argv: list[str]) -> None:
    del argv
    dataset = prepare(
        _INPUT.value,
        _OUTPUT.value,
        format=_FORMAT.value,
        columns=_columns(),
        time_unit=_TIME_UNIT.value,
        separator=_SEPARATOR.value and _SEPARATOR.value.replace("\\t", "\t"),
        drop_missing=_DROP_MISSING.value,
        time_range=_time_range(),
        min_rating=_MIN_RATING.value,
        behaviours=_BEHAVIOURS.value,
        duplicates=_DUPLICATES.value,
        user_core=_USER_CORE.value,
        item_core=_ITEM_CORE.value,
        tied_order=_TIED_ORDER.value,
        spark=_spark_session(),
    )
    print(format_card(dataset.card))
    print(f"written to {_OUTPUT.value}")


if __name__ == "__main__":
    # glibc returns freed memory to the system here: a log of 20 million rows then needs 1.9 GB.
    run_program(main, keep_freed_memory=False)
