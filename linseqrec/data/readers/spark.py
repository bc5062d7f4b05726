"""Reading logs with Spark, with the same result as Polars in `files.py`.

Spark's rows have no order, but the rows of a file have. Spark reads a file in blocks: a Parquet
file is one block, a text file may be several. The number of a row is the number of rows in the
earlier blocks plus its place in its own block.
"""

import itertools
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import narwhals as nw

from linseqrec.data.readers.formats import Format
from linseqrec.data.readers.log import WRITTEN
from linseqrec.data.readers.times import NUMBER
from linseqrec.errors import LogError, UserError, first_line

# Names of temporary columns. They have spaces, so that a log is unlikely to have the same names.
ROW = "number of the row"
_BLOCK, _PLACE, _SHIFT = "block of the row", "place of the row", "rows before the place"


class SparkUnavailable(UserError, RuntimeError):
    """Spark cannot start. The message says what is missing and how to install it."""


def start_session(master: str | None = None, settings: Mapping[str, str] | None = None) -> Any:
    """A new Spark session, or the running session of this process.

    Args:
      master: Where Spark runs: "local[8]", "spark://HOST:7077", "yarn". None: Spark's own
        configuration decides.
      settings: Spark settings by name; they override the settings of this function.

    Returns:
      The `pyspark.sql.SparkSession`.

    Raises:
      SparkUnavailable: PySpark or Java is not installed.
    """
    try:
        from pyspark.errors import PySparkRuntimeError
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise SparkUnavailable(
            "PySpark is not installed. Install it: pip install -e '.[spark]'"
        ) from error
    builder = SparkSession.builder.appName("linseqrec prepare")
    if master is not None:
        builder = builder.master(master)
    defaults = {
        # The driver collects the numbered events, which may exceed Spark's limit of 1 GB.
        "spark.driver.maxResultSize": "0",
        "spark.ui.showConsoleProgress": "false",
    }
    for name, value in {**defaults, **(settings or {})}.items():
        builder = builder.config(name, value)
    try:
        session = builder.getOrCreate()
    except (PySparkRuntimeError, OSError) as error:
        raise SparkUnavailable(
            f"Spark does not start ({first_line(error)}). It needs Java 17 or 21: install "
            "one and set JAVA_HOME."
        ) from error
    session.sparkContext.setLogLevel("ERROR")
    logging.getLogger("py4j").setLevel(logging.WARNING)
    return session


def errors() -> tuple[type[Exception], ...]:
    """The exceptions of Spark about files that it cannot read; empty without PySpark."""
    try:
        from py4j.protocol import Py4JJavaError
        from pyspark.errors import PySparkException
    except ImportError:
        return ()
    return (Py4JJavaError, PySparkException)


def check_readable(path: Path, log_format: Format, *, is_gzip: bool) -> None:
    """Raises `LogError` for a file that Polars can read but Spark cannot."""
    if log_format.kind == "json":
        raise LogError(
            str(path),
            "Spark reads Parquet and delimited text here, but this is JSON. Prepare it without "
            "Spark, or write it as Parquet.",
        )
    if log_format.kind == "text" and is_gzip != (path.suffix == ".gz"):
        content = "is gzip" if is_gzip else "is not gzip"
        raise LogError(
            str(path),
            f"the file {content}. Spark detects gzip by the name, which must end in .gz for a gzip "
            "file and for no other: rename the file.",
        )


def scan_parquet(session: Any, files: Sequence[Path]) -> Any:
    """The rows of Parquet files, in the order of the files, numbered in column `ROW`."""
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
    log_format: Format,
    num_fields: int,
    positions: Mapping[str, int],
    unit: str | None,
    *,
    quotes: bool,
    exact: bool,
) -> nw.LazyFrame[Any]:
    """The events of a delimited file, with the columns of `Log.frame`.

    Args:
      session: The Spark session.
      path: The file, which must have passed `check_shape`. Spark's workers must find it at the
        same path.
      log_format: The format of the file.
      num_fields: Number of fields in a line.
      positions: The position of each role.
      unit: The time unit, or None if it is not known. Times of the unit "iso" stay text.
      quotes: Whether the file has quotes.
      exact: Whether times are integers too large for float64; they become int64.

    Returns:
      The frame. A value that cannot be parsed is null.
    """
    from pyspark.sql import functions as F

    # Without this setting, the blocks depend on the number of workers, which changes over time.
    if session.conf.get("spark.sql.files.minPartitionNum", None) is None:
        session.conf.set("spark.sql.files.minPartitionNum", "1")
    frame = session.read.csv(
        _location(path),
        schema=", ".join(f"`{position}` STRING" for position in range(num_fields)),
        sep=log_format.separator,
        header=log_format.header,
        lineSep="\n",
        quote='"' if quotes else "",
        escape='"' if quotes else "",
    )
    text = {
        role: F.regexp_replace(str(position), "\r$", "") for role, position in positions.items()
    }
    text |= {name: text[role] for role, name in WRITTEN.items() if role in text}
    if "timestamp" in text and unit != "iso":
        text["timestamp"] = _number(text["timestamp"], "long" if exact else "double")
    if "rating" in text:
        text["rating"] = _number(text["rating"], "double")
    events = frame.select(
        F.col("_metadata.file_block_start").alias(_BLOCK),
        F.monotonically_increasing_id().alias(_PLACE),
        *(value.alias(role) for role, value in text.items()),
    )
    return nw.from_native(_numbered(events).withColumnRenamed(ROW, "row"))


def datetimes_to_microseconds(frame: Any, name: str) -> Any:
    """The frame with column `name`, dates or datetimes, as microseconds since 1970.

    Dates and datetimes without a time zone count as UTC.
    """
    from pyspark.sql import functions as F

    if frame.schema[name].dataType.typeName() == "timestamp":
        return frame.withColumn(name, F.unix_micros(name))
    text = F.concat(F.col(name).cast("timestamp_ntz").cast("string"), F.lit("+00:00"))
    return frame.withColumn(name, F.unix_micros(text.cast("timestamp")))


def _numbered(frame: Any) -> Any:
    """The frame with column `ROW` in place of `_BLOCK` and `_PLACE`.

    `_PLACE` must increase by one from row to row in a block, from any first value.
    """
    from pyspark.sql import functions as F

    block_stats = frame.groupBy(_BLOCK).agg(F.min(_PLACE), F.count(_PLACE))
    # In the order of the log: Parquet files by name, blocks of a text file by their first byte.
    blocks = sorted(map(tuple, block_stats.collect()))
    rows_before = itertools.accumulate((count for _, _, count in blocks), initial=0)
    shifts = frame.sparkSession.createDataFrame(
        [
            (block, rows - first_place)
            for (block, first_place, _), rows in zip(blocks, rows_before, strict=False)
        ],
        f"`{_BLOCK}` {frame.schema[_BLOCK].dataType.simpleString()}, `{_SHIFT}` LONG",
    )
    numbered = frame.join(F.broadcast(shifts), on=_BLOCK)
    row = (F.col(_PLACE) + F.col(_SHIFT)).alias(ROW)
    return numbered.select(row, *frame.drop(_BLOCK, _PLACE).columns)


def _number(text: Any, dtype: str) -> Any:
    """The column as numbers; null for other text, also for "1d", which Spark would accept."""
    from pyspark.sql import functions as F

    return F.when(text.rlike(f"^{NUMBER}$"), text.try_cast(dtype))


def _location(path: Path) -> str:
    """The path as a Spark URI of a local file, with all pattern characters escaped."""
    return "file://" + re.sub(r"([*?\[\]{}\\])", r"\\\1", str(path.absolute()))
