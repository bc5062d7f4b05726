"""A study as a user runs it: trained, recorded, shown, gone on with."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from linseqrec.training import workdir
from linseqrec.training.preemption import EXIT_CODE
from tests.launch.programs import ROOT, program

STUDY = """
from linseqrec.studies.study import Arm, Study, Table

TINY = {
    "model.width": 8,
    "model.num_layers": 1,
    "model.heads": 1,
    "data.world_users": 60,
    "data.length": 8,
    "training.num_epochs": 1.0,
    "optimizer.warmup_steps": 2,
}
ARMS = (Arm("SASRec", "experiments/quick.py:sasrec", TINY),)
STUDY = Study("tiny", "Tiny", "About it.", (Table("t", "Why?", ARMS, seeds=SEEDS),))
"""


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    (folder / "tiny.py").write_text(STUDY.replace("SEEDS", "(0,)"))
    return folder, study(folder)


def study(folder, *flags):
    places = [f"--workdir={folder / 'runs'}", f"--output={folder / 'results'}"]
    return program("study", f"--study={folder / 'tiny.py'}", *places, *flags)


def test_a_study_trains_and_writes_its_record_and_page(studied):
    folder, done = studied
    assert done.returncode == 0, done.stderr
    assert "1 runs, 1 to train" in done.stdout and "t, SASRec, seed 0: finished" in done.stdout
    (table,) = json.loads((folder / "results" / "tiny.json").read_text())["tables"]
    (model,) = table["models"]
    (run,) = (folder / "runs" / "quick" / "sasrec").iterdir()
    results = json.loads((run / "results.json").read_text())
    expected = results["test"]["SASRec"]["metrics"]["none"]["NDCG@10"]
    assert model["metrics"]["none"]["NDCG@10"]["mean"] == pytest.approx(expected)
    assert model["runs"][0]["minutes"] > 0 and table["missing"] == {}
    page = (folder / "results" / "tiny.md").read_text()
    assert "generated world 'quick' (synthetic data)" in page
    assert f"--workdir=runs/studies --output={folder / 'results'}\n" in page
    assert "In a clone" not in page
    # A table that lacks no run keeps no ranks.
    assert {path.name for path in (folder / "results").iterdir()} == {"tiny.json", "tiny.md"}


def test_the_same_command_trains_what_is_left(studied):
    folder, _ = studied
    (folder / "tiny.py").write_text(STUDY.replace("SEEDS", "(0, 1)"))
    done = study(folder, "--dry_run")
    assert "t, SASRec, seed 1" in done.stdout and "seed 0" not in done.stdout
    assert "2 runs, 1 to train" in done.stdout
    assert study(folder, "--render").returncode == 0
    (table,) = json.loads((folder / "results" / "tiny.json").read_text())["tables"]
    assert table["missing"] == {"SASRec": [1]}


def test_a_run_that_trains_elsewhere_is_left_alone(tmp_path):
    (tmp_path / "tiny.py").write_text(STUDY.replace("SEEDS", "(0,)"))
    name, folder = study(tmp_path, "--dry_run").stdout.splitlines()[0].split("  ")
    with workdir.lock(Path(folder)):
        done = study(tmp_path, "--dry_run")
    assert done.returncode == 0, done.stderr
    assert "1 runs, 0 to train, 1 train elsewhere now" in done.stdout and name not in done.stdout


def test_the_end_of_the_minutes_is_named_with_the_command_that_goes_on(tmp_path):
    (tmp_path / "tiny.py").write_text(STUDY.replace("SEEDS", "(0,)"))
    done = study(tmp_path, "--minutes=0.02")
    assert done.returncode == EXIT_CODE, done.stderr
    assert "the time of --minutes=0.02 is up; go on with the same command:\n" in done.stdout
    assert "SIG" not in done.stdout


def test_a_study_goes_on_without_its_workdirs(studied):
    folder, _ = studied
    (folder / "tiny.py").write_text(STUDY.replace("SEEDS", "(0, 1)"))
    assert study(folder, "--render").returncode == 0
    record = folder / "results" / "tiny.json"
    before = record.read_text()
    (folder / "runs").rename(folder / "elsewhere")
    assert "2 runs, 1 to train" in study(folder, "--dry_run").stdout
    done = study(folder, "--render", "--analyse")
    assert done.returncode == 0, done.stderr
    assert record.read_text() == before
    (folder / "elsewhere").rename(folder / "runs")


def test_recorded_runs_stay_and_are_not_trained_again(studied):
    folder, _ = studied
    (folder / "tiny.py").write_text(STUDY.replace("SEEDS", "(0, 1)"))
    assert study(folder, "--render").returncode == 0
    record = folder / "results" / "tiny.json"
    before = record.read_text()
    shutil.rmtree(folder / "results" / "runs")
    (folder / "runs").rename(folder / "elsewhere")
    done = study(folder, "--render")
    assert done.returncode == 0, done.stderr
    assert record.read_text() == before
    assert "2 runs, 1 to train" in study(folder, "--dry_run").stdout
    # Their arms are as they were.
    assert study(folder, "--render", "--drop").returncode == 0
    assert record.read_text() == before
    assert study(folder, "--render", "--drop", "--tables=t").returncode == 0
    assert json.loads(record.read_text())["tables"][0]["models"] == []
    (folder / "elsewhere").rename(folder / "runs")
    assert study(folder, "--render").returncode == 0
    assert record.read_text() == before


def test_a_record_does_not_lose_runs_unasked(studied):
    folder, _ = studied
    (folder / "tiny.py").write_text(STUDY.replace("SEEDS", "(0, 1)").replace('"SASRec', '"Sasrec'))
    done = study(folder, "--render")
    assert done.returncode == 1 and "t, SASRec, seed 0. Give the --workdir" in done.stderr
    assert "or --drop" in done.stderr
    assert study(folder, "--render", "--drop").returncode == 0
    (table,) = json.loads((folder / "results" / "tiny.json").read_text())["tables"]
    assert [model["label"] for model in table["models"]] == ["Sasrec"]


def test_runs_that_others_record_during_the_training_stay(studied, tmp_path):
    """Two machines share a record."""
    folder, _ = studied
    (folder / "tiny.py").write_text(STUDY.replace("SEEDS", "(0,)"))
    assert study(folder, "--render", "--drop").returncode == 0
    full = folder / "results" / "tiny.json"
    (tmp_path / "full.json").write_text(full.read_text())
    record = json.loads(full.read_text())
    record["tables"][0]["models"] = []
    full.write_text(json.dumps(record))
    code = (
        "import sys; from launch import program, study; "
        f"study._train = lambda runs: __import__('shutil').copy({str(tmp_path / 'full.json')!r}, "
        f"{str(full)!r}) and 0; program.run_program(study.main)"
    )
    flags = [f"--study={folder / 'tiny.py'}", f"--output={full.parent}", f"--workdir={tmp_path}"]
    done = subprocess.run([sys.executable, "-c", code, *flags], cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr
    (table,) = json.loads(full.read_text())["tables"]
    assert [len(model["runs"]) for model in table["models"]] == [1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--study=none.py"], "no study none.py"),
        (["--study=experiments/quick.py"], "experiments/quick.py defines no STUDY"),
        ([], "give a study: --study=experiments/studies/NAME.py"),
        (
            ["--study=experiments/studies/hytrec.py", "--tables=drift,dirft"],
            "--tables=dirft: hytrec has ultra_long, drift, completejourney",
        ),
    ],
    ids=["no file", "no study", "none given", "unknown table"],
)
def test_what_is_no_study_is_refused(flags, message):
    done = program("study", *flags)
    assert done.returncode == 1 and message in done.stderr
