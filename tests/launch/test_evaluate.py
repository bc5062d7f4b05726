"""`python -m launch.evaluate` on several runs and checkpoints; on one: `test_train.py`."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from linseqrec.config_json import to_json
from linseqrec.training import saved_run
from linseqrec.training.checkpoint import Checkpoints
from linseqrec.training.run import Run
from tests.launch.programs import ROOT, program


def tables(printed):
    """Each table's rows by filter: (title, {"filtered" or "not filtered": {label: [metrics]}})."""
    found = []
    for line in printed.splitlines():
        if "filter_seen=" in line:
            found.append((line, {}))
        elif ", all 30 items ranked" in line:
            rows = found[-1][1].setdefault(line.partition("seen items ")[2].split(",")[0], {})
        elif line.startswith("| ") and not line.startswith("| system"):
            label, *values = [cell.strip() for cell in line.strip("|").split("|")]
            assert label not in rows, "a row stands twice"
            rows[label] = values
    return found


def test_runs_on_one_protocol_share_a_table_and_others_have_their_own(trained, tmp_path):
    steps = sorted(
        int(path.name) for path in (trained[0] / "checkpoints").iterdir() if path.name.isdigit()
    )
    assert len(steps) == 2
    folders = {name: tmp_path / name / "run" for name in ("first", "second", "unfiltered")}
    for folder in folders.values():
        shutil.copytree(trained[0], folder, ignore=shutil.ignore_patterns("evaluations"))
    path = folders["unfiltered"] / "config.json"
    config = json.loads(path.read_text())
    config["evaluation"]["filter_seen"] = ["none"]
    path.write_text(json.dumps(config))

    done = program(
        "evaluate",
        *(f"--workdir={folder}" for folder in folders.values()),
        f"--checkpoint=latest,{steps[0]},{steps[1]}",
        "--split=validation,test",
    )
    assert done.returncode == 0, done.stderr
    printed = tables(done.stdout)
    titles = [title.partition("; split leave_one_out; ")[2] for title, _ in printed]
    assert titles == [
        "validation targets; filter_seen=none,all",
        "test targets; filter_seen=none,all",
        "validation targets; filter_seen=none",
        "test targets; filter_seen=none",
    ]
    for (_, filters), split, members in zip(
        printed,
        ["validation", "test"] * 2,
        [["first", "second"]] * 2 + [["unfiltered"]] * 2,
        strict=True,
    ):
        assert set(filters) == (
            {"not filtered"} if members == ["unfiltered"] else {"not filtered", "filtered"}
        )
        expected = {}
        asked = "none" if members == ["unfiltered"] else "none-all"
        for name in members:
            for step in steps:
                evaluations = folders[name] / "evaluations"
                assert (evaluations / f"{split}-{step}-{asked}.npz").exists()
                written = json.loads((evaluations / f"{split}-{step}-{asked}.json").read_text())
                assert written.pop("step") == step
                own = written.pop("RecGRELA")
                expected[f"RecGRELA ({folders[name]}), step {step}"] = own
                expected |= written
        assert {"Popularity", "Markov", "Decayed Markov"} <= set(expected)
        for kind, rows in filters.items():
            which = "none" if kind == "not filtered" else "all"
            assert {label: values[1] for label, values in rows.items()} == {
                label: f"{summary['metrics'][which]['HR@10']:.4f}"
                for label, summary in expected.items()
            }


def test_an_evaluation_under_another_filter_replaces_none(trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained[0], folder, ignore=shutil.ignore_patterns("evaluations"))
    arguments = [f"--workdir={folder}", "--checkpoint=latest", "--nobaselines"]
    for filters in ("all", "none"):
        done = program("evaluate", *arguments, f"--config.evaluation.filter_seen={filters}")
        assert done.returncode == 0, done.stderr
        assert f"-{filters}.json and .npz" in done.stdout
    written = {path.name: json.loads(path.read_text()) for path in folder.rglob("test-*.json")}
    step = written[min(written)]["step"]
    assert {name: list(each["RecGRELA"]["metrics"]) for name, each in written.items()} == {
        f"test-{step}-{filters}.json": [filters] for filters in ("all", "none")
    }


def test_a_model_may_read_other_lengths_than_in_training(trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained[0], folder, ignore=shutil.ignore_patterns("evaluations"))
    step = json.loads((folder / "results.json").read_text())["step"]
    experiment = saved_run.read_experiment(folder)
    # A stride is one of training: no length of an evaluation has to fit it.
    (folder / "results.json").unlink()  # It has a digest of the configuration.
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"stride": null', '"stride": 12'))
    ranks = {}
    for length in (2, 0):
        done = program("evaluate", f"--workdir={folder}", f"--config.data.length={length}")
        assert done.returncode == 0, done.stderr
        stem = f"test-{step}-none-all-length{length}"
        assert f"{stem}.json" in done.stdout
        saved = np.load(folder / "evaluations" / f"{stem}.npz")
        data = dataclasses.replace(experiment.data, length=length)
        run = Run.of(dataclasses.replace(experiment, data=data), trains=False)
        with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
            variables = checkpoints.restore_variables(step, run.model, experiment.optimizer)
        ranks[length] = run.evaluate(variables, "test").ranks["none"]
        np.testing.assert_array_equal(saved["rank_none"], ranks[length])
    assert (ranks[2] != ranks[0]).any()


def test_the_pooled_auc_is_added_where_it_is_asked_for(trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained[0], folder, ignore=shutil.ignore_patterns("evaluations"))
    done = program("evaluate", f"--workdir={folder}", "--auc")
    assert done.returncode == 0, done.stderr
    (path,) = (folder / "evaluations").glob("*.json")
    written = json.loads(path.read_text())
    run = Run.of(saved_run.read_experiment(folder), trains=False, auc=True)
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        variables = checkpoints.restore_variables(
            written["step"], run.model, run.experiment.optimizer
        )
    expected = run.evaluate(variables, "test").metrics_by_filter
    ((_, shown),) = tables("filter_seen=\n" + done.stdout)
    for filter_seen, words in (("none", "not filtered"), ("all", "filtered")):
        auc = {
            name: each["metrics"][filter_seen]["AUC"]
            for name, each in written.items()
            if name != "step"
        }
        assert auc["RecGRELA"] == expected[filter_seen]["AUC"]
        (rows,) = (rows for name, rows in shown.items() if name.split(" (")[0] == words)
        last = {label: values[-1] for label, values in rows.items()}
        assert {name: last[name] for name in auc} == {n: f"{value:.4f}" for n, value in auc.items()}
    assert "AUC" not in program("evaluate", f"--workdir={folder}").stdout


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--split=test,training", "choose among validation, test"),
        ("--config.filter_seen=both", "evaluation.filter_seen is 'both': it must be one of 'none'"),
        ("--config.evaluation.filter=all", "has no field evaluation.filter (did you mean 'evaluat"),
        ("--config.model.width=8", "--config.model.width: an evaluation may change"),
    ],
)
def test_a_flag_that_cannot_be_is_refused_with_what_can(argument, message, trained):
    done = program("evaluate", f"--workdir={trained[0]}", argument)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "error:" in done.stderr and message in done.stderr


def test_the_module_of_a_model_outside_of_the_library_is_named_by_a_flag(trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained[0], folder)
    (folder / "results.json").unlink()  # It has a digest of the configuration.
    config = json.loads((folder / "config.json").read_text())
    config["model"]["class"] = "tests.own_configs:OwnRecGRELAConfig"
    (folder / "config.json").write_text(json.dumps(config))
    arguments = ["evaluate", f"--workdir={folder}", "--nobaselines"]
    done = program(*arguments)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "OwnRecGRELAConfig cannot be found: " in done.stderr
    assert "give --import=tests.own_configs to programs that open" in done.stderr
    done = program(*arguments, "--import=tests.own_configs")
    assert done.returncode == 0, done.stderr
    done = program(*arguments, "--import=tests.no_such_module")
    assert done.returncode == 1 and "error: --import=tests.no_such_module" in done.stderr


@pytest.fixture
def forsaken(trained, tmp_path):
    """A run whose data set is no longer where it was."""
    folder = tmp_path / "run"
    shutil.copytree(trained[0], folder)
    config = json.loads((folder / "config.json").read_text())
    config["data"]["folder"] = str(tmp_path / "gone")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("evaluate", ["--nobaselines"]),
        ("recommend", ["--users=u7", "--output={}/next.csv"]),
        ("analyse", ["--analysis=state_sink", "--users=8", "--output={}/analysis"]),
    ],
)
def test_data_that_have_moved_are_named_by_a_flag(forsaken, prepared, tmp_path, name, arguments):
    shutil.copytree(prepared, tmp_path / "moved")
    arguments = [argument.format(tmp_path) for argument in arguments]
    done = program(name, f"--workdir={forsaken}", *arguments, f"--data={tmp_path / 'moved'}")
    assert done.returncode == 0, done.stderr


def test_data_that_are_gone_or_others_are_refused(forsaken, prepared, tmp_path):
    done = program("evaluate", f"--workdir={forsaken}")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert f"data set in {tmp_path / 'gone'}, but that folder does not exist" in done.stderr
    assert "--data=FOLDER" in done.stderr
    other = tmp_path / "other"
    shutil.copytree(prepared, other)
    card = json.loads((other / "card.json").read_text())
    card["sha256"]["user_ids"] = "0"
    (other / "card.json").write_text(json.dumps(card))
    done = program("evaluate", f"--workdir={forsaken}", f"--data={other}")
    assert done.returncode == 1 and "on other data (user_ids differ)" in done.stderr


def test_the_python_code_of_the_page_gives_the_metrics_of_the_run(trained, tmp_path, monkeypatch):
    page = (ROOT / "docs" / "evaluate_checkpoints.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "clicks").symlink_to(trained[0])
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(code, names)
    results = json.loads((trained[0] / "results.json").read_text())
    assert names["result"].metrics == pytest.approx(
        results["test"]["RecGRELA"]["metrics"]["none"], rel=1e-5
    )


def test_runs_of_other_lengths_are_set_against_counting_of_their_own_length(trained, tmp_path):
    folders = [tmp_path / name for name in ("short", "long")]
    for folder, length in zip(folders, (3, 5), strict=True):
        shutil.copytree(trained[0], folder, ignore=shutil.ignore_patterns("evaluations"))
        (folder / "results.json").unlink()  # It has a digest of the configuration.
        experiment = saved_run.read_experiment(folder)
        data = dataclasses.replace(experiment.data, length=length)
        config = to_json(dataclasses.replace(experiment, data=data))
        (folder / "config.json").write_text(json.dumps(config))
    done = program("evaluate", *(f"--workdir={folder}" for folder in folders))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("seen items filtered, mean ties") == 1
    names = [f"Personal Markov, last {length} events" for length in (3, 5)]
    # A table with seen items filtered, and one without.
    assert all(done.stdout.count(f"| {name} ") == 2 for name in names)
    for folder, name, other in zip(folders, names, reversed(names), strict=True):
        (path,) = (folder / "evaluations").glob("*.json")
        written = json.loads(path.read_text())
        assert name in written and other not in written
