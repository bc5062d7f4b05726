"""`python -m launch.prepare`, run as a program."""

import pytest

from linseqrec.data.dataset import Dataset
from tests.launch.programs import program


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(
        "who,what,when,stars,part\n"
        "u,i,9,5,validation\nu,j,7,4,train\nv,i,8,5,train\nu,i,1,1,train\nw,j,99,5,train\n"
    )
    return path


def test_prepare_writes_a_dataset_folder_and_prints_its_card(log, tmp_path):
    folder = tmp_path / "set"
    columns = "--columns=user=who,item=what,timestamp=when,rating=stars,fold=part"
    ended = program(
        "prepare",
        f"--input={log}",
        f"--output={folder}",
        "--format=csv",
        columns,
        "--min_rating=4",
        "--time_unit=s",
        "--time_range=0,50",
        "--user_core=2",
        "--duplicates=first",
    )
    assert ended.returncode == 0, ended.stderr
    dataset = Dataset.open(folder)
    assert dataset.item_ids()[dataset.items].tolist() == ["j", "i"]
    assert dataset.timestamps.tolist() == [7, 9] and dataset.folds.tolist() == [0, 1]
    lines = ended.stdout.splitlines()
    for expected in (
        "read 3 users, 2 items, 5 events",
        "rating >= 4 2 users, 2 items, 3 events",
        "data set 1 users, 2 items, 2 events",
        f"sha256 items {dataset.card['sha256']['items']}",
    ):
        assert any(" ".join(line.split()) == expected for line in lines), ended.stdout
    assert lines[-1] == f"written to {folder}"


def test_columns_may_be_named_by_position(tmp_path):
    path = tmp_path / "log.tsv"
    path.write_text("9\tu\ti\n8\tu\tj\n")
    columns = "--columns=user=1,item=2,timestamp=0"
    ended = program("prepare", f"--input={path}", f"--output={tmp_path / 'set'}", columns)
    assert ended.returncode == 0, ended.stderr
    assert Dataset.open(tmp_path / "set").timestamps.tolist() == [8, 9]


def test_the_separator_may_be_named_and_events_without_ids_dropped(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text("user\titem\tdate\nu\ti\t2024-01-31\n\tj\t2024-01-31\n")
    ended = program(
        "prepare",
        f"--input={path}",
        f"--output={tmp_path / 'set'}",
        r"--separator=\t",
        "--drop_missing",
    )
    assert ended.returncode == 0, ended.stderr
    assert Dataset.open(tmp_path / "set").timestamps.tolist() == [1706659200]
    printed = " ".join(ended.stdout.split())
    assert "time 2024-01-31 00:00:00 to 2024-01-31 00:00:00 UTC (" in printed
    assert "events with a user id and an item id 1 users, 1 items, 1 events" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no column for the user among who, what"),
        (["--columns=user"], "--columns=user must be role=column pairs: type --columns=user=.."),
        (
            ["--columns=user=who", "--columns=item=what,timestamp=when"],
            "--columns is given twice, the second time as item=what,timestamp=when: give it once",
        ),
        (
            ["--behaviours=buy", "--behaviours=cart"],
            "--behaviours is given twice, the second time as cart: give it once, with commas",
        ),
        (
            ["--columns=user=who,item=what,user=part"],
            "--columns=user=who,item=what,user=part names two columns for the user: give each",
        ),
        (["--time_range=1"], "--time_range=1 must be two numbers in seconds: type --time_range="),
        (["--time_range=2,1"], "--time_range=2,1: FIRST must be smaller than END"),
        (["--format=excel"], "should be one of"),
        (
            ["--columns=user=who,rating=price,item=what,timestamp=when"],
            "no column 'price' for the rating among who, what",
        ),
        (
            ["--columns=user=who,item=what,timestamp=part"],
            "line 2: the time 'validation' cannot be read. A time is a number of seconds",
        ),
        (["surplus"], "not a flag: surplus"),
        (["--spark_master=local[2]"], "need --engine=spark, but --engine is polars"),
        (
            ["--engine=spark", "--spark_conf=spark.ui.enabled"],
            "--spark_conf=spark.ui.enabled must be NAME=VALUE: type --spark_conf=spark.executor",
        ),
    ],
    ids=[
        "no user column",
        "column without role",
        "columns twice",
        "behaviours twice",
        "role twice",
        "one time",
        "decreasing times",
        "unknown format",
        "unknown column",
        "column of another type",
        "argument that is no flag",
        "Spark flag without Spark",
        "Spark setting without value",
    ],
)
def test_errors_are_one_line_with_exit_code_1(log, tmp_path, arguments, message):
    ended = program(
        "prepare", f"--input={log}", f"--output={tmp_path / 'set'}", "--format=csv", *arguments
    )
    assert ended.returncode == 1 and not ended.stdout
    assert ended.stderr.startswith("error: ") and message in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "set").exists()


def test_help_describes_the_formats():
    lines = [" ".join(line.split()) for line in program("prepare", "--help").stdout.splitlines()]
    assert "movielens-dat: MovieLens ratings.dat: user::item::rating::seconds" in lines
    assert "tsv: Tabs and a header" in lines
