"""`python -m launch.prepare`, as a user runs it."""

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


def test_a_log_becomes_a_folder_and_its_card_is_printed(log, tmp_path):
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


def test_columns_by_position(tmp_path):
    path = tmp_path / "log.tsv"
    path.write_text("9\tu\ti\n8\tu\tj\n")
    columns = "--columns=user=1,item=2,timestamp=0"
    ended = program("prepare", f"--input={path}", f"--output={tmp_path / 'set'}", columns)
    assert ended.returncode == 0, ended.stderr
    assert Dataset.open(tmp_path / "set").timestamps.tolist() == [8, 9]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no column for the user among who, what"),
        (["--columns=user"], "role=column pairs"),
        (["--time_range=1"], "takes two numbers"),
        (["--time_range=2,1"], "the first must be less"),
        (["--format=excel"], "should be one of"),
        (["--columns=user=who,rating=price,item=what,timestamp=when"], "no column 'price' for the"),
        (["--columns=user=who,item=what,timestamp=part"], "line 2: the time is missing or no num"),
        (["surplus"], "not a flag: surplus"),
        (["--spark_master=local[2]"], "are for --engine=spark"),
        (["--engine=spark", "--spark_conf=spark.ui.enabled"], "takes NAME=VALUE"),
    ],
)
def test_what_cannot_be_done_is_said_in_words(log, tmp_path, arguments, message):
    ended = program(
        "prepare", f"--input={log}", f"--output={tmp_path / 'set'}", "--format=csv", *arguments
    )
    assert ended.returncode == 1 and not ended.stdout
    assert ended.stderr.startswith("error: ") and message in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "set").exists()


def test_help_says_what_the_dialects_are():
    lines = [" ".join(line.split()) for line in program("prepare", "--help").stdout.splitlines()]
    assert "movielens-dat: MovieLens ratings.dat: user::item::rating::seconds" in lines
    assert "tsv: Tabs and a header" in lines
