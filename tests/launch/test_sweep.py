"""A sweep as a user runs it: two small trainings at a time, one of which fails."""

import json
import re
import shlex

import pytest

from tests.launch.test_train import program

SMALL = [
    "--config=experiments/quick.py:sasrec",
    "--config.model.width=8",
    "--config.model.heads=1",
    "--config.model.num_layers=1",
    "--config.data.world_users=60",
    "--config.data.length=16",
    "--config.training.num_epochs=1",
    "--config.evaluation.filter_seen=none,all",
]
# The second warm-up is longer than the run: what only the run itself can know.
SPLITS = "--grid=split=leave_one_out,folds"


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    return folder, program("sweep", *SMALL, SPLITS, "--parallel=2", f"--workdir={folder}")


def test_a_failed_run_is_named_and_the_other_finishes(swept):
    folder, done = swept
    assert done.returncode == 1
    assert "2 runs: 2 new" in done.stdout
    assert "1 of 2 runs failed" in done.stderr and "Traceback" not in done.stderr
    assert f"{folder}/split=folds: exit code 1" in done.stderr
    assert "the data set has no folds" in done.stderr
    good = folder / "split=leave_one_out"
    results = json.loads((good / "results.json").read_text())
    assert "SASRec" in results["test"]
    config = json.loads((good / "config.json").read_text())
    assert config["data"]["split"] == "leave_one_out" and config["model"]["width"] == 8
    assert config["evaluation"]["filter_seen"] == ["none", "all"]
    assert "step" in (good / "log.txt").read_text()


def test_the_same_command_makes_what_is_left(swept):
    folder, _ = swept
    before = (folder / "split=leave_one_out" / "log.txt").read_bytes()
    arguments = [*SMALL, SPLITS, f"--workdir={folder}"]
    done = program("sweep", *arguments, "--executor=print", "--wandb_project=p")
    assert done.returncode == 0, done.stderr
    assert "1 finished, 1 new" in done.stderr
    (command,) = done.stdout.splitlines()
    assert f"--workdir={folder}/split=folds" in shlex.split(command)
    assert "--wandb_project=p" in shlex.split(command)
    assert set(SMALL) < set(shlex.split(command)) | {
        "--config.training.num_epochs=1"  # It is written 1.0.
    }
    assert (folder / "split=leave_one_out" / "log.txt").read_bytes() == before


def test_a_taken_folder_stops_the_sweep_before_it_starts(swept):
    folder, _ = swept
    # Beside the clash stands a run that could begin.
    done = program(
        "sweep",
        *SMALL,
        "--config.training.seed=1",
        "--grid=split=leave_one_out,global_temporal",
        f"--workdir={folder}",
    )
    assert done.returncode == 1
    assert "1 clash, 1 new" in done.stdout
    assert "training.seed: 0 -> 1" in done.stderr
    assert not (folder / "split=global_temporal").exists()


def test_the_report_holds_what_finished_and_names_what_did_not(swept):
    folder, _ = swept
    done = program("report", f"--runs={folder}")
    assert done.returncode == 0, done.stderr
    results = json.loads((folder / "split=leave_one_out" / "results.json").read_text())
    for which, metrics in results["test"]["SASRec"]["metrics"].items():
        row = f"| SASRec | 1 | {metrics['HR@10']:.4f} | {metrics['NDCG@10']:.4f} |"
        assert row in re.sub(" +", " ", done.stdout), which
    assert "(synthetic data)" in done.stdout.splitlines()[0]
    assert f"- {folder}/split=folds: did not begin" in done.stdout
    assert "the data set has no folds" in done.stdout
    assert program("report", f"--runs={folder}", "--selected", "--metrics=MRR@10").returncode == 0
    assert "MRR@10" in (folder / "report_selected" / "report.csv").read_text()
    assert "MRR@10" not in (folder / "report" / "report.csv").read_text()
    assert {path.name for path in (folder / "report").iterdir()} == {
        "report.md",
        "report.csv",
        "comparisons.csv",
        "learning_curves.png",
        "by_length.png",
    }
