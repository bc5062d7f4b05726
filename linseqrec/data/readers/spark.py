"""Logs read by Spark: what Polars does to files in `files.py`, and the session that does it.

Spark's rows have no order by themselves. A file's do: a row's number is the count of rows in the
blocks (a Parquet file, or a piece of a text file) before its own, plus its place in the block.
"""

import itertools
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import narwhals as nw

from linseqrec.data.readers.formats import Format
from linseqrec.errors import LogError, UserError

# No columns' names.
ROW = "number of the row"
_BLOCK, _PLACE, _SHIFT = "block of the row", "place of the row", "rows before the place"

# What `files.py` reads as a number or a date; Spark alone would read more ("1d", "2020").
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_DATETIME = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)?$"


class SparkUnavailable(UserError, RuntimeError):
    """Spark cannot start here: what is missing, and how to get it."""


def start_session(master: str | None = None, settings: Mapping[str, str] | None = None) -> Any:
    """Starts a Spark session, or joins the one that this process has.

    Args:
      master: Where Spark runs ("local[8]", "spark://HOST:7077", "yarn"); None: as the environment
        has it.
      settings: Spark's own, which override ours.

    Returns:
      The `pyspark.sql.SparkSession`.

    Raises:
      SparkUnavailable: PySpark or Java is not installed.
    """
    try:
        from pyspark.errors import PySparkRuntimeError
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise SparkUnavailable("PySpark is not installed: pip install -e '.[spark]'") from error
    builder = SparkSession.builder.appName("linseqrec prepare")
    if master is not None:
        builder = builder.master(master)
    ours = {
        # The prepared arrays end on the driver, whose limit of 1 GB is meant for mistakes.
        "spark.driver.maxResultSize": "0",
        "spark.ui.showConsoleProgress": "false",
    }
    for name, value in {**ours, **(settings or {})}.items():
        builder = builder.config(name, value)
    try:
        session = builder.getOrCreate()
    except (PySparkRuntimeError, OSError) as error:
        raise SparkUnavailable(
            f"Spark does not start ({str(error).splitlines()[0]}). It needs Java 17 or 21: install "
            "one and set JAVA_HOME."
        ) from error
    session.sparkContext.setLogLevel("ERROR")
    logging.getLogger("py4j").setLevel(logging.WARNING)
    return session


def errors() -> tuple[type[Exception], ...]:
    """What Spark raises about files it cannot read; nothing where it is not installed."""
    try:
        from py4j.protocol import Py4JJavaError
        from pyspark.errors import PySparkException
    except ImportError:
        return ()
    return (Py4JJavaError, PySparkException)


def check_readable(path: Path, chosen: Format, *, packed: bool) -> None:
    """Refuses what Polars reads and Spark does not (`LogError`)."""
    if chosen.kind == "json":
        raise LogError(
            str(path),
            "Spark reads Parquet and delimited text here, no JSON: prepare it without Spark, or "
            "write it as Parquet.",
        )
    if chosen.kind == "text" and packed != (path.suffix == ".gz"):
        raise LogError(
            str(path),
            "Spark knows gzip by the name: a file's must end in .gz if and only if it is.",
        )


def scan_parquet(session: Any, files: Sequence[Path]) -> Any:
    """Parquet files, one after another, with their rows numbered in `ROW`."""
    from pyspark.sql import functions as F

    frame = session.read.parquet(*map(_location, files))
    return _numbered(
        frame.select(
            "*",
            F.col("_metadata.file_name").alias(_BLOCK),
            F.col("_metadata.row_index").alias(_PLACE),
        )
    )


def scan_text(
    session: Any,
    path: Path,
    chosen: Format,
    num_fields: int,
    positions: Mapping[str, int],
    unit: str | None,
    *,
    quotes: bool,
) -> nw.LazyFrame[Any]:
    """A delimited file that has passed `check_shape`, as `Log.frame` wants it.

    Args:
      session: The Spark session.
      path: The file; its workers must find it at the same path.
      chosen: The dialect.
      num_fields: Fields a line.
      positions: Role to position.
      unit: The time unit, if it is known.
      quotes: Some field stands in quotes.

    Returns:
      The frame; what does not read is null.
    """
    from pyspark.sql import functions as F

    # Else the blocks would depend on how many workers there are, which changes while Spark runs.
    if session.conf.get("spark.sql.files.minPartitionNum", None) is None:
        session.conf.set("spark.sql.files.minPartitionNum", "1")
    frame = session.read.csv(
        _location(path),
        schema=", ".join(f"`{position}` STRING" for position in range(num_fields)),
        sep=chosen.separator,
        header=chosen.header,
        lineSep="\n",
        quote='"' if quotes else "",
        escape='"' if quotes else "",
    )
    text = {
        role: F.regexp_replace(str(position), "\r$", "") for role, position in positions.items()
    }
    if "timestamp" in text:
        if unit == "iso":
            text["timestamp"] = _microseconds(
                F.regexp_replace(F.regexp_replace(text["timestamp"], "T", " "), "Z$", "")
            )
        else:
            text["timestamp"] = _number(text["timestamp"])
    if "rating" in text:
        text["rating"] = _number(text["rating"])
    events = frame.select(
        F.col("_metadata.file_block_start").alias(_BLOCK),
        F.monotonically_increasing_id().alias(_PLACE),
        *(value.alias(role) for role, value in text.items()),
    )
    return nw.from_native(_numbered(events).withColumnRenamed(ROW, "row"))


def datetimes_to_microseconds(frame: Any, name: str) -> Any:
    """A frame with a column of dates or times as microseconds since 1970 (UTC where zoneless)."""
    from pyspark.sql import functions as F

    if frame.schema[name].dataType.typeName() == "timestamp":
        return frame.withColumn(name, F.unix_micros(name))
    zoneless = F.col(name).cast("timestamp_ntz").cast("string")
    return frame.withColumn(name, _microseconds(zoneless).cast("long"))


def _numbered(frame: Any) -> Any:
    """Replaces `_BLOCK` and `_PLACE`, which counts up by one in a block, by `ROW`."""
    from pyspark.sql import functions as F

    blocks = frame.groupBy(_BLOCK).agg(F.min(_PLACE), F.count(_PLACE))
    # Blocks sort by where they stand: files by name, pieces by their first byte.
    found = sorted(map(tuple, blocks.collect()))
    before = itertools.accumulate((count for _, _, count in found), initial=0)
    shifts = frame.sparkSession.createDataFrame(
        [(block, rows - first) for (block, first, _), rows in zip(found, before, strict=False)],
        f"`{_BLOCK}` {frame.schema[_BLOCK].dataType.simpleString()}, `{_SHIFT}` LONG",
    )
    numbered = frame.join(F.broadcast(shifts), on=_BLOCK)
    row = (F.col(_PLACE) + F.col(_SHIFT)).alias(ROW)
    return numbered.select(row, *frame.drop(_BLOCK, _PLACE).columns)


def _number(text: Any) -> Any:
    from pyspark.sql import functions as F

    return F.when(text.rlike(_NUMBER), text.try_cast("double"))


def _microseconds(text: Any) -> Any:
    """Of `YYYY-MM-DD HH:MM:SS[.f]` in UTC, whatever the session's time zone; else null."""
    from pyspark.sql import functions as F

    instant = F.concat(text, F.lit("+00:00")).try_cast("timestamp")
    return F.when(text.rlike(_DATETIME), F.unix_micros(instant)).cast("double")


def _location(path: Path) -> str:
    """A path as Spark names a local file, nothing in it taken for a pattern."""
    return "file://" + re.sub(r"([*?\[\]{}\\])", r"\\\1", str(path.absolute()))
