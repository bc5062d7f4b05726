"""A run that is told request times, from the command line: its title, its lists, its company."""

import numpy as np
import polars as pl
import pytest

from linseqrec.data.dataset import Dataset
from linseqrec.data.histories import gather_histories
from linseqrec.serving.recommender import Recommender
from tests.launch.programs import program


@pytest.fixture(scope="module")
def told(prepared, trained, tmp_path_factory):
    """The session's run again, told request times; its workdir and what it printed."""
    workdir = tmp_path_factory.mktemp("told")
    arguments = [each for each in trained[1] if not each.startswith("--workdir")]
    done = program("train", *arguments, "--config.data.request_time=known", f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout


def test_the_title_and_the_tables_say_so(told):
    assert "; split leave_one_out; request time known\n" in told[1]
    assert told[1].count("mean ties, request time known:") == 2
    assert "| Timed Personal Markov " in told[1]


def test_runs_of_both_kinds_have_tables_of_their_own_and_no_figure(trained, told, tmp_path):
    folders = [f"--workdir={folder}" for folder in (trained[0], told[0])]
    done = program("evaluate", *folders, "--nobaselines")
    assert done.returncode == 0, done.stderr
    titles = [line for line in done.stdout.splitlines() if "test targets; filter_seen" in line]
    assert len(titles) == 2
    assert ["request time known" in title for title in titles] == [False, True]
    runs = [f"--runs={folder}" for folder in (trained[0], told[0])]
    done = program("report", *runs, f"--output={tmp_path}")
    assert done.returncode == 1 and "they differ in their request time" in done.stderr
    done = program("analyse", *folders, f"--output={tmp_path}")
    assert done.returncode == 1 and "they differ in their request time" in done.stderr


def test_lists_for_now_are_those_of_the_carried_states(told, prepared, tmp_path):
    output, dataset = tmp_path / "lists.parquet", Dataset.open(prepared)
    arguments = [f"--workdir={told[0]}", "--users=u7,brief", "--split=none", f"--output={output}"]
    done = program("recommend", *arguments)
    assert done.returncode == 1 and "now is not given" in done.stderr
    now = int(dataset.timestamps.max()) + 7_200
    done = program("recommend", *arguments, "--top_k=5", f"--now={now}")
    assert done.returncode == 0, done.stderr
    frame = pl.read_parquet(output)
    users = np.array([list(dataset.user_ids()).index(user) for user in ("u7", "brief")])
    served = Recommender.from_workdir(told[0])
    states = served.start(gather_histories(dataset, users, dataset.offsets[users + 1], None))
    items, scores = served.recommend(states, 5, now=served.seconds(now))
    np.testing.assert_array_equal(dataset.item_ids()[items].ravel(), frame["item"])
    np.testing.assert_allclose(scores.ravel(), frame["score"], rtol=1e-4)
