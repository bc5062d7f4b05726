"""launch.recommend: its file agrees with launch.evaluate and with `Recommender`."""

import json

import numpy as np
import polars as pl
import pytest

from linseqrec.data.dataset import Dataset
from linseqrec.data.histories import gather_histories
from linseqrec.evaluation.metrics import rank_metrics
from linseqrec.serving.recommender import Recommender
from linseqrec.training.checkpoint import CheckpointError
from tests.launch.programs import program


@pytest.fixture(scope="module")
def log(prepared):
    """Each user's items in time order, by the log's own ids."""
    frame = pl.read_csv(prepared.parent / "log.csv")
    users = frame.group_by("user", maintain_order=True)
    return {user: rows["item"].to_list() for (user,), rows in users}


@pytest.fixture(scope="module")
def evaluated_metrics(trained):
    """The test metrics from launch.evaluate, by filter."""
    workdir, _, _ = trained
    process = program("evaluate", f"--workdir={workdir}", "--nobaselines")
    assert process.returncode == 0, process.stderr
    step = json.loads((workdir / "results.json").read_text())["step"]
    path = workdir / "evaluations" / f"test-{step}-none-all.json"
    return json.loads(path.read_text())["RecGRELA"]["metrics"]


@pytest.mark.parametrize(
    ("filter_seen", "suffix"), [("none", ".parquet"), ("all", ".csv")], ids=["none", "all"]
)
def test_the_target_ranks_in_the_file_give_the_evaluated_metrics(
    trained, log, evaluated_metrics, tmp_path, filter_seen, suffix
):
    workdir, _, _ = trained
    output = tmp_path / f"lists{suffix}"
    flag = "--filter_seen" if filter_seen == "all" else "--nofilter_seen"
    process = program("recommend", f"--workdir={workdir}", "--all", flag, f"--output={output}")
    assert process.returncode == 0, process.stderr
    frame = pl.read_parquet(output) if suffix == ".parquet" else pl.read_csv(output)

    targets = frame.unique("user", maintain_order=True)
    assert targets["user"].to_list() == [user for user in log if user != "brief"]
    assert targets["target"].to_list() == [log[user][-1] for user in targets["user"]]
    assert set(targets["history_length"]) == {11}
    means, _ = rank_metrics(targets["target_rank"].to_numpy())
    assert means == {name: evaluated_metrics[filter_seen][name] for name in means}

    hits = frame.filter(pl.col("item") == pl.col("target"))
    assert len(hits) > 10 and (hits["rank"] == hits["target_rank"]).all()
    for (user,), rows in frame.group_by("user", maintain_order=True):
        assert rows["rank"].to_list() == list(range(1, len(rows) + 1))
        assert rows["score"].is_sorted(descending=True)
        seen = set(log[user][:-1])
        assert bool(seen & set(rows["item"])) == (filter_seen == "none"), user
        assert len(rows) == (20 if filter_seen == "none" else min(20, 30 - len(seen)))


def test_lists_after_all_events_equal_those_of_the_recommender(trained, prepared, tmp_path):
    workdir, _, _ = trained
    (tmp_path / "users.txt").write_text("u7\nbrief\nu31\n")
    process = program(
        "recommend",
        f"--workdir={workdir}",
        f"--users=@{tmp_path / 'users.txt'}",
        "--split=none",
        "--top_k=5",
        f"--output={tmp_path / 'new' / 'lists.parquet'}",
    )
    assert process.returncode == 0, process.stderr
    frame = pl.read_parquet(tmp_path / "new" / "lists.parquet")
    assert frame.columns == ["user", "rank", "item", "score", "history_length"]
    assert frame["user"].to_list() == ["u7"] * 5 + ["brief"] * 5 + ["u31"] * 5
    assert frame["history_length"].to_list() == [12] * 5 + [2] * 5 + [12] * 5

    dataset = Dataset.open(prepared)
    users = np.array([list(dataset.user_ids()).index(user) for user in ("u7", "brief", "u31")])
    recommender = Recommender.from_workdir(workdir)
    states = recommender.start(gather_histories(dataset, users, dataset.offsets[users + 1], None))
    items, scores = recommender.recommend(states, 5)
    np.testing.assert_array_equal(dataset.item_ids()[items].ravel(), frame["item"])
    np.testing.assert_allclose(scores.ravel(), frame["score"], rtol=1e-5)
    np.testing.assert_array_equal(recommender.seconds([1_000, 1_660]), [0, 660])
    with pytest.raises(CheckpointError, match="no checkpoint '99999'"):
        Recommender.from_workdir(workdir, "99999")


def test_lists_hold_the_items_asked_for_and_ranks_stay_those_of_the_catalogue(
    trained, log, tmp_path
):
    workdir, _, _ = trained
    asked = sorted({item for items in log.values() for item in items})[::4]
    (tmp_path / "stock.txt").write_text("\n".join([*asked, "not yet met"]))
    frames = []
    for name, flag in (("all", "--items="), ("stock", f"--items=@{tmp_path / 'stock.txt'}")):
        output = tmp_path / f"{name}.parquet"
        process = program(
            "recommend", f"--workdir={workdir}", "--all", "--top_k=30", flag, f"--output={output}"
        )
        assert process.returncode == 0, process.stderr
        frames.append(pl.read_parquet(output))
    assert f"1 of {len(asked) + 1} --items are not in the data set" in process.stdout
    output = tmp_path / "others.parquet"
    exclude = f"--exclude=@{tmp_path / 'stock.txt'}"
    process = program(
        "recommend", f"--workdir={workdir}", "--all", "--top_k=30", exclude, f"--output={output}"
    )
    assert process.returncode == 0, process.stderr
    assert f"1 of {len(asked) + 1} --exclude are not in the data set" in process.stdout
    whole, stock = frames
    in_stock = pl.col("item").is_in(asked)
    for shown, chosen in ((stock, in_stock), (pl.read_parquet(output), ~in_stock)):
        expected = whole.filter(chosen)
        assert 0 < len(expected) < len(whole)
        for column in ("user", "item", "score", "target", "target_rank"):
            assert shown[column].to_list() == expected[column].to_list(), column


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--users=u3,nobody"], "no such users in the data set: nobody"),
        (["--users=u3,brief"], "users without test target in the leave_one_out split: brief"),
        (["--all", "--top_k=31"], "--top_k=31: the catalogue has 30 items"),
        (["--users=@none.txt"], "--users=@none.txt: No such file"),
        (["--all", "--items=x,y"], "no such items in the data set: "),
        (["--users=,"], "--users=, has no id"),
        (["--all", "--items=@none.txt"], "--items=@none.txt: No such file"),
    ],
    ids=[
        "unknown user",
        "user without target",
        "list too long",
        "missing file",
        "unknown items",
        "no user",
        "missing file of items",
    ],
)
def test_a_user_error_is_one_line_and_writes_no_file(trained, tmp_path, arguments, message):
    workdir, _, _ = trained
    output = f"--output={tmp_path / 'lists.csv'}"
    process = program("recommend", f"--workdir={workdir}", output, *arguments)
    assert process.returncode == 1
    assert process.stderr.startswith("error: ") and message in process.stderr
    assert "Traceback" not in process.stderr and not list(tmp_path.iterdir())


def test_a_file_of_ids_is_text_in_utf_8(trained, tmp_path):
    workdir, _, _ = trained
    ids, output = tmp_path / "ids.txt", tmp_path / "lists.csv"
    arguments = [f"--workdir={workdir}", f"--users=@{ids}", f"--output={output}"]
    ids.write_bytes("caf\xe9".encode("latin-1"))
    refused = program("recommend", *arguments)
    assert refused.returncode == 1 and "ids.txt: the file is no UTF-8 text" in refused.stderr
    ids.write_bytes(b"u3\r\nno\x0cbody\r\n")
    refused = program("recommend", *arguments)
    assert "no such users in the data set: no?body\n" in refused.stderr
    # Editors of Windows begin a text with a mark of its encoding.
    ids.write_text("u3\n", encoding="utf-8-sig")
    assert program("recommend", *arguments).returncode == 0
    assert set(pl.read_csv(output)["user"]) == {"u3"}
