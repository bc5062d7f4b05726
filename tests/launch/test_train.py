"""The programs as a user runs them: a log in, results out, and the same results from a checkpoint.

One process a program: their flags would meet in one.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest

from linseqrec.runs.results import seal_results
from linseqrec.training.saved_run import read_experiment, read_results
from tests.launch.programs import ROOT, SMALL, TINY, program


def test_a_run_leaves_what_is_promised(trained):
    workdir, _, printed = trained
    results = json.loads((workdir / "results.json").read_text())
    hit_rate = results["test"]["RecGRELA"]["metrics"]["none"]["HR@10"]
    assert f"{hit_rate:.4f}" in printed
    assert "(filter_seen=none), HR@10 " in printed and "(filter_seen=all); best step " in printed
    assert "60 targets, all 30 items ranked, seen items not filtered, mean ties" in printed
    for name in ("card.json", "config.json", "metrics.jsonl", "checkpoints", "ranks/test.npz"):
        assert (workdir / name).exists(), name
    assert {path.name for path in (workdir / "figures").iterdir()} == {
        "learning_curves.png",
        "by_length.png",
    }


@pytest.mark.parametrize(
    ("arguments", "devices"),
    # Another batch size changes no digit, nor do more devices than the run's batch has rows for.
    [(["--config.evaluation.batch_size=7"], 1), (["--config.mesh.model=2"], 6)],
)
def test_evaluate_reproduces_the_reported_metrics(arguments, devices, trained):
    workdir, _, _ = trained
    done = program("evaluate", f"--workdir={workdir}", *arguments, devices=devices)
    assert done.returncode == 0, done.stderr
    results = json.loads((workdir / "results.json").read_text())
    written = json.loads(
        (workdir / "evaluations" / f"test-{results['step']}-none-all.json").read_text()
    )
    for system, summary in results["test"].items():
        assert written[system]["metrics"] == summary["metrics"], system
        assert written[system]["buckets"] == summary["buckets"], system


def test_runs_share_what_was_compiled_outside_of_their_workdirs(prepared, tmp_path):
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    del environment["JAX_COMPILATION_CACHE_DIR"]
    held = []
    for name in ("a", "b"):
        done = subprocess.run(
            [sys.executable, "-m", "launch.train", *TINY, f"--workdir={tmp_path / name}"]
            + ["--config.training.num_epochs=0.1", f"--config.data.folder={prepared}"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        (folder,) = (tmp_path / "cache/linseqrec").iterdir()
        held.append({path.name for path in folder.glob("*-cache")})
        native = [path for path in (tmp_path / name).rglob("*") if "cache" in path.name]
        assert not native, "the workdir holds data alone"
        assert "cache" not in done.stderr
        # A kill between the two files of a program leaves it like this.
        cut = min(folder.glob("jit_step*-cache"))
        cut.write_bytes(cut.read_bytes()[:100])
        cut.with_name(cut.name.replace("-cache", "-atime")).unlink()
    assert held[0] == held[1], "the second run compiled anew"
    assert len(held[0]) > 1 and folder.stat().st_mode & 0o777 == 0o700


def test_the_same_command_prints_the_results_again(trained):
    workdir, arguments, printed = trained
    before = (workdir / "metrics.jsonl").read_bytes()
    done = program("train", *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout in printed
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_what_selected_the_checkpoint_is_printed_as_the_results_have_it(trained, tmp_path):
    workdir = shutil.copytree(trained[0], tmp_path / "run")
    results = read_results(workdir) | {"selected_by": "no validation: it was damaged"}
    sealed = seal_results(workdir, read_experiment(workdir), results)
    (workdir / "results.json").write_text(json.dumps(sealed))
    done = program("train", *trained[1], f"--workdir={workdir}")
    assert "selected by no validation: it was damaged" in done.stdout, done.stderr


def test_a_report_refuses_in_one_line(trained, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(trained[0], other)
    card = json.loads((other / "card.json").read_text())
    card["sha256"]["items"] = "0"
    (other / "card.json").write_text(json.dumps(card))
    # As a run would have written it: an edited card is refused for that alone.
    results = json.loads((other / "results.json").read_text())
    for name in ("config", "sha256"):
        del results[name]
    (other / "results.json").write_text(json.dumps(results))
    for arguments, message in (
        ([f"--runs={other}"], "are runs on different data (items differ"),
        (["--drawn=NDCG@7"], "no metric 'NDCG@7'; there are HR@1, "),
    ):
        output = f"--output={tmp_path / 'report'}"
        done = program("report", f"--runs={trained[0]}", output, *arguments)
        assert done.returncode == 1
        assert done.stderr.startswith("error: ") and message in done.stderr
        assert done.stderr.count("\n") == 1 and not (tmp_path / "report").exists()


def test_analyses_of_a_checkpoint(trained, tmp_path):
    workdir, _, _ = trained
    done = program(
        "analyse",
        f"--workdir={workdir}",
        f"--output={tmp_path}",
        "--context=8",
        "--shown=2",
        "--insertions=0,2",
    )
    assert done.returncode == 0, done.stderr
    names = ("state_sink", "insertion_probe", "attention_rank", "buckets")  # RecGRELA has no gates
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{name}.{suffix}" for name in names for suffix in ("json", "png")
    }
    written = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in names}
    step = json.loads((workdir / "results.json").read_text())["step"]
    for name, record in written.items():
        assert record["about"]["split"] == "validation"
        assert record["about"]["runs"] == {"RecGRELA": {"step": step, "length": 16}}
        assert record["about"].get("histories") == (None if name == "buckets" else 60)
        assert ("probe" in record["about"]) == (name == "insertion_probe")
    assert written["insertion_probe"]["about"]["probe"]["insertions"] == [0, 2]
    numbers = {name: record["runs"] for name, record in written.items()}
    assert numbers["state_sink"]["RecGRELA"]["blocks/0"]["occupancy_lift"]["users"] == 60
    probe = numbers["insertion_probe"]["RecGRELA"]
    # Of 60 users' 12 events, 8 and more stand before the validation target.
    assert (probe["insertions"], probe["users"]) == ([0, 2], 60)
    # The best checkpoint's metric is what the run logged for its step.
    (validation,) = numbers["buckets"]["RecGRELA"]["none"]["length"][:1]
    results = json.loads((workdir / "results.json").read_text())
    best = results["validation"]["RecGRELA"]["metrics"]["none"]["NDCG@10"]
    assert validation["targets"] == 60
    assert validation["metrics"]["NDCG@10"] == best


def test_an_analysis_that_the_data_do_not_allow_keeps_nobody_from_the_others(trained, tmp_path):
    message = "no user has the 64 events before its target"
    given = (f"--workdir={trained[0]}", f"--output={tmp_path}", "--users=8")
    done = program("analyse", *given)
    assert done.returncode == 0, done.stderr
    assert f"insertion_probe: {message}" in done.stdout
    assert (tmp_path / "buckets.json").exists() and not (tmp_path / "insertion_probe.json").exists()
    done = program("analyse", *given, "--analysis=insertion_probe")
    assert done.returncode == 1 and message in done.stderr


def test_an_analysis_asked_for_by_name_that_applies_to_no_run_is_refused(trained, tmp_path):
    arguments = (f"--workdir={trained[0]}", f"--output={tmp_path}", "--analysis=gates")
    done = program("analyse", *arguments)
    assert done.returncode == 1
    assert "gates: does not apply to RecGRELA (no gated delta memory)" in done.stderr


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--analysis=state_sunk", "no analysis state_sunk: there are state_sink"),
        ("--insertions=a", "--insertions=a: type counts, as in 0,4,16"),
        ("--insertions=", "insertions must ascend from 0 or more"),
        ("--metric=foo", "no metric 'foo'; there are HR@1"),
        ("--analysis=buckets --analysis=all,sunk", "no analysis sunk: there are"),
    ],
)
def test_an_analysis_that_cannot_be_is_refused_before_a_run_is_read(tmp_path, argument, message):
    arguments = [f"--workdir={tmp_path / 'none'}", f"--output={tmp_path}", *argument.split()]
    done = program("analyse", *arguments)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ") and message in done.stderr


def test_a_flag_that_is_missing_is_asked_for():
    assert program("recommend", "--workdir=x").stderr == "error: give --output\n"
    done = program("train", SMALL[0])
    assert done.stderr.startswith("error: give the folder of the run")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=experiments/none.py"], "no experiment file experiments/none.py"),
        (["--config=experiments/quik.py"], "did you mean 'experiments/quick.py'?"),
        (
            [SMALL[0], "--config.model.num_layer=3"],
            "the experiment has no field model.num_layer (did you mean 'model.num_layers",
        ),
        ([SMALL[0], "--config.model.num_heads=3"], "no field model.num_heads (did you mean "),
        ([SMALL[0], "--config.batch_size=3"], "may be data.batch_size or evaluation.batch_size"),
        ([SMALL[0], "--config.model.heads=four"], "model.heads is 'four': it must be a whole"),
        (["--config=experiments/quick.py:sasrek"], "experiments/quick.py: no 'sasrek': choose rec"),
        (
            [SMALL[0], "--config.optimiser.learning_rate=3"],
            "no field optimiser.learning_rate (did you mean 'optimizer.learning_rate'?)",
        ),
        ([SMALL[0], "--config.sed=3"], "the experiment has no field sed (did you mean 'seed'?)"),
        ([SMALL[0], "--config.data.plan=pack"], "error: data.plan is 'pack'"),
        ([SMALL[0], "--config.model.heads=3"], "error: model.width 64 must be even and a multiple"),
        ([SMALL[0], "--config.data.split=folds"], "the data set has no folds"),
        (
            [SMALL[0], "--config.data.split=global_temporal", "--config.data.test_quantile=0.5"],
            "the quantiles must satisfy 0 < validation_quantile < test_quantile < 1",
        ),
        ([SMALL[0], "--workdir=gs://bucket/run"], "must be a local folder"),
        ([SMALL[0], "--workdir=README.md"], "it is a file: name a folder"),
        ([SMALL[0], f"--workdir={'x' * 300}"], "File name too long: name another folder"),
        ([SMALL[0], "--config.training.seed=-1"], "training.seed is -1: it must be at least 0"),
        ([SMALL[0], "--config.learning_rate=nan"], "learning_rate is 'nan': it must be a finite"),
        ([SMALL[0], "--config.learning_rate=-1"], "learning_rate is -1.0: it must be above 0"),
        ([SMALL[0], "--workdir="], "give the folder of the run"),
        ([SMALL[0], "surplus"], "not a flag: surplus"),
        ([SMALL[0], "--config.data.folder=nowhere"], "nowhere"),
        ([SMALL[0], "--config.data.world=quack"], "quick"),
        ([SMALL[0], "--config.model.causal=false"], "it must be 'prefixes'"),
        ([], "give an experiment: --config="),
    ],
)
def test_a_mistake_ends_in_one_line(arguments, message, tmp_path):
    done = program("train", f"--workdir={tmp_path / 'run'}", *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_an_output_that_is_a_file_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    done = program("report", f"--runs={tmp_path / 'none'}", f"--output={tmp_path / 'file'}")
    assert done.returncode == 1 and "it is a file: name a folder" in done.stderr


def test_a_report_needs_a_metric(tmp_path):
    done = program("report", f"--runs={tmp_path}", "--metrics=")
    assert done.returncode == 1 and "name at least one metric" in done.stderr


def test_help_shows_shared_flags():
    shown = program("analyse", "--help").stdout
    assert "--data: Folder of the run's data set" in shown and "--output: Folder" in shown


def test_help_and_configuration_need_no_run():
    for name in ("train", "sweep"):
        shown = program(name, "--help").stdout
        assert "--config: Experiment file" in shown and "--workdir:" in shown
        assert "_Unset" not in shown
        if name == "sweep":
            assert "--workdir=runs/sweep \\\n" in shown
    done = program("train", SMALL[0], "--config.model.heads=8", "--print_config")
    assert done.returncode == 0, done.stderr
    assert "model.heads = 8  # a whole number, at least 1\n" in done.stdout


def test_a_model_of_the_experiments_own_file_is_refused_before_it_trains(tmp_path):
    (tmp_path / "own.py").write_text("""
import dataclasses
from linseqrec.config import Experiment
from linseqrec.models.sasrec import SASRec, SASRecConfig

@dataclasses.dataclass(frozen=True)
class OwnConfig(SASRecConfig):
    pass

def get_config():
    return Experiment(model=OwnConfig())
""")
    done = program("train", f"--config={tmp_path / 'own.py'}", f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 1 and done.stderr.startswith("error: the class <run_path>:OwnConfig")
    assert "put a model of your own into a module that the experiment's file imports" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_workdir_is_not_taken_over(trained):
    workdir, arguments, _ = trained
    done = program("train", *arguments, "--config.training.seed=1")
    assert done.returncode == 1
    assert "training.seed: 0 -> 1" in done.stderr


def test_evaluate_names_the_checkpoints_there_are(trained, tmp_path):
    workdir, _, _ = trained
    done = program("evaluate", f"--workdir={workdir}", "--checkpoint=99999")
    assert done.returncode == 1 and "there are 'best', 'latest' and steps" in done.stderr
    done = program("evaluate", f"--workdir={tmp_path}")
    assert done.returncode == 1 and "not the workdir of a run" in done.stderr
