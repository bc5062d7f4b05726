"""Preparation on Spark: the same data set as with Polars, to the last byte."""

import datetime
import gzip
import importlib.util
import os
import shutil

import numpy as np
import polars as pl
import pytest

from linseqrec.data.dataset import Dataset
from linseqrec.data.prepare import prepare
from linseqrec.data.readers import LogError, spark
from tests.launch.programs import program

ARRAYS = ("items.npy", "timestamps.npy", "offsets.npy", "user_ids.parquet", "item_ids.parquet")


SETTINGS = {
    "spark.ui.enabled": "false",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
    "spark.sql.shuffle.partitions": "2",
    # Small blocks, so that even the small logs of the tests have several.
    "spark.sql.files.maxPartitionBytes": "1200",
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
    # Not UTC, so that a wrong treatment of times without a zone would shift them.
    "spark.sql.session.timeZone": "America/New_York",
}


@pytest.fixture(scope="session")
def installed():
    if importlib.util.find_spec("pyspark") is None:
        pytest.skip("PySpark is not installed")
    if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
        pytest.skip("Java is not installed")


@pytest.fixture(scope="session")
def session(installed):
    started = spark.start_session("local[1]", SETTINGS)
    yield started
    started.stop()


def assert_same(log, tmp_path, session, **arguments):
    expected = prepare(log, tmp_path / "polars", **arguments)
    found = prepare(log, tmp_path / "spark", spark=session, **arguments)
    assert found.card == expected.card
    folds = ["folds.npy"] if expected.folds is not None else []
    for name in [*ARRAYS, *folds]:
        written = [(tmp_path / engine / name).read_bytes() for engine in ("polars", "spark")]
        assert written[0] == written[1], name
    return expected


def test_text_with_every_filter_gives_the_same_data_set(session, tmp_path):
    """The log has several blocks, quotes, Windows line ends, dates, ties and distant duplicates."""
    rng = np.random.default_rng(0)
    lines = ['who,"what",when,stars,part,did']
    for _ in range(130):
        user, item, second = rng.integers(9), rng.integers(12), rng.integers(5)
        part = ("train", "validation", "test")[second % 3]
        rest = f"{rng.integers(1, 6)},{part},{rng.choice(['see', 'buy', 'like'])}"
        lines.append(f'u{user},"i,{item}",2020-03-08T02:30:0{second}.25Z,{rest}')
    log = tmp_path / "a [log].csv"
    log.write_bytes("\r\n".join([*lines, ""]).encode())
    dataset = assert_same(
        log,
        tmp_path,
        session,
        format="csv",
        columns={
            "user": "who",
            "item": "what",
            "timestamp": "when",
            "rating": "stars",
            "behaviour": "did",
            "fold": "part",
        },
        time_unit="iso",
        time_range=(1583634601, 1583634605),
        min_rating=2,
        behaviours=["see", "buy"],
        duplicates="last",
        user_core=3,
        item_core=4,
    )
    # Each filter drops events, and users have ties.
    steps = dataset.card["filters"]
    assert len(steps) == 5
    assert all(step["before"]["events"] > step["after"]["events"] for step in steps)
    assert dataset.card["ties"]["events"] > 10


def test_a_folder_of_parquet_keeps_the_order_of_its_files(session, tmp_path):
    """All events have one time, so that only files and rows give their order."""
    log = tmp_path / "log"
    log.mkdir()
    rng = np.random.default_rng(1)
    for name in ("part-2.parquet", "part-1.parquet"):
        pl.DataFrame(
            {
                "user": rng.integers(5, size=20),
                "item": rng.integers(8, size=20),
                "row_index": 7,
                "timestamp": [datetime.datetime(2020, 3, 8, 2, 30)] * 20,
            }
        ).write_parquet(log / name)
    dataset = assert_same(log, tmp_path, session)
    (first,) = pl.read_parquet(log / "part-1.parquet").head(1).rows()
    begin = dataset.offsets[list(dataset.user_ids()).index(str(first[0]))]
    assert dataset.item_ids()[dataset.items[begin]] == str(first[1])
    assert dataset.origin == 1583634600


def test_times_and_ids_of_all_forms_give_the_same_data_set(session, tmp_path):
    """Offsets, fractions, dates alone; floats and missing values as ids; nanoseconds."""
    times = [
        "2024-01-31T23:59:58.999999999+02:00",
        "2024-02-29",
        "2024-01-31 23:59 UTC",
        "2024-01-31 23:59:58.5-0530",
        "1999-12-31T00:00:00Z",
        None,
        "2024-03-01",
    ]
    users = [17850.0, 17851.0, None, 17850.0, 20000000.0, 17851.0, 17851.0]
    items, ratings = ["a", "b", "c", "", "d", "a", "a"], [4.0, 4.0, 4.0, 4.0, 4.0, 4.0, None]
    frame = pl.DataFrame({"user": users, "item": items, "time": times, "rating": ratings})
    frame.write_parquet(tmp_path / "log.parquet")
    frame.write_csv(tmp_path / "log.csv", separator="|")
    exact = "".join(f"u,i,{1706745598 + second}999999999\n" for second in range(5))
    (tmp_path / "exact.csv").write_text("user,item,time\n" + exact)
    for name in ("log.parquet", "log.csv"):
        arguments = {"drop_missing": True, "min_rating": 4}
        dataset = assert_same(tmp_path / name, tmp_path / name[4:], session, **arguments)
        assert dataset.timestamps.tolist() == [1706738398, 1709164800, 946598400]
        assert dataset.user_ids().tolist() == ["17850", "17851", "20000000"]
    dataset = assert_same(tmp_path / "exact.csv", tmp_path / "exact", session)
    assert dataset.timestamps.tolist() == list(range(1706745598, 1706745603))


@pytest.mark.parametrize("wrong", ["1d", " 7"], ids=["Java double", "leading space"])
def test_the_error_names_the_wrong_line(session, tmp_path, wrong):
    log = tmp_path / "ratings.dat"
    lines = [f"{number % 7}::{number % 5}::3::{number}" for number in range(200)]
    lines[173] = f"1::2::3::{wrong}"
    log.write_text("\n".join(lines) + "\n")
    for engine in (None, session):
        with pytest.raises(LogError, match=f"line 174: the time '{wrong}' cannot be read"):
            prepare(log, tmp_path / "set", spark=engine)


def test_the_program_prepares_a_gzip_log_on_spark(installed, tmp_path):
    """The log has backslashes, and no times."""
    log = tmp_path / "pairs.txt.gz"
    pairs = np.random.default_rng(2).integers(1, 12, (60, 2))
    log.write_bytes(gzip.compress("".join(f"{u}\\ {i}\n" for u, i in pairs).encode()))
    done = program(
        "prepare",
        f"--input={log}",
        f"--output={tmp_path / 'spark'}",
        "--engine=spark",
        "--spark_master=local[1]",
        *(f"--spark_conf={name}={value}" for name, value in SETTINGS.items()),
    )
    assert done.returncode == 0, done.stderr
    assert Dataset.open(tmp_path / "spark").card == prepare(log, tmp_path / "polars").card
    assert "read 11 users, 11 items, 60 events" in " ".join(done.stdout.split())


def test_without_java_the_error_says_how_to_install_it(installed, tmp_path, monkeypatch):
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    (tmp_path / "log.csv").write_text("user,item,timestamp\nu,i,1\n")
    done = program(
        "prepare",
        f"--input={tmp_path / 'log.csv'}",
        f"--output={tmp_path / 'set'}",
        "--engine=spark",
        "--spark_master=local[1]",
    )
    assert done.returncode == 1
    assert "needs Java 17 or 21: install one and set JAVA_HOME" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "log.json",
            b'{"user": "u", "item": "i", "time": 1}\n',
            "Spark reads Parquet and delimited text here, but this is JSON. Prepare it without",
        ),
        (
            "log.csv",
            gzip.compress(b"user,item,time\nu,i,1\n", mtime=0),
            "the file is gzip. .* must end in .gz .*rename the file",
        ),
        (
            "log.csv.gz",
            b"user,item,time\nu,i,1\n",
            "the file is not gzip. .* must end in .gz .*rename the file",
        ),
        (
            "log.csv",
            b'user,item,time\n"u",i,1\nv,a"b"c,1\n',
            "line 3: a quote is inside an unquoted field. Quote the whole field",
        ),
    ],
    ids=["json", "gzip without .gz", ".gz without gzip", "quote in a field"],
)
def test_files_that_spark_cannot_read_are_refused_before_spark_runs(
    tmp_path, name, content, message
):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LogError, match=message):
        prepare(tmp_path / name, tmp_path / "set", spark=object())
