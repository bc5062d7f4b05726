"""Workdirs: who may use one, what its files contain, and the mirrors of its metrics."""

import dataclasses
import errno
import importlib.metadata
import json
import struct
import subprocess
import sys
import types

import jax
import pytest
from tensorboardX.proto import event_pb2

from linseqrec.config import Experiment
from linseqrec.config_json import override, to_json
from linseqrec.data.writing import write_dataset
from linseqrec.errors import WorkdirError
from linseqrec.training import saved_run, workdir
from linseqrec.training.log import MetricsLog
from linseqrec.training.loop import train


def test_readers_skip_an_incomplete_last_line_and_the_log_replaces_it(tmp_path):
    records = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.5}]
    lines = [json.dumps(record) + "\n" for record in records]
    (tmp_path / "metrics.jsonl").write_text("".join(lines) + '{"step": 3, "lo')
    assert list(saved_run.read_metrics(tmp_path)) == records
    with MetricsLog(tmp_path, 1) as log:
        log.write(2, {"loss": 1.25})
    assert list(saved_run.read_metrics(tmp_path)) == [records[0], {"step": 2, "loss": 1.25}]


def test_metrics_are_mirrored_to_tensorboard(tmp_path):
    with MetricsLog(tmp_path, 1) as log:
        log.write(2, {"loss": 1.25, "norm": 0.5}, {"speed": 9.0})
        # Read inside the context: the log writes to disk before it closes the file.
        events = list(read_events(tmp_path / "tensorboard"))
    version, start, *scalars = events
    assert version.file_version == "brain.Event:2"
    assert (start.session_log.status, start.step) == (event_pb2.SessionLog.START, 2)
    values = [(event.step, *event.summary.value) for event in scalars]
    assert [(step, value.tag, value.simple_value) for step, value in values] == [
        (2, "loss", 1.25),
        (2, "norm", 0.5),
        (2, "speed", 9.0),
    ]


def read_events(folder):
    """The events in the only file of a folder. A record is length, checksum, bytes, checksum."""
    (path,) = folder.iterdir()
    data = path.read_bytes()
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        yield event_pb2.Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]


@pytest.fixture
def wandb_calls(monkeypatch):
    """The arguments of all calls to a fake W&B library, which replaces the real one."""
    calls = []

    def init(**arguments):
        recorded = ("project", "name", "id", "resume", "config")
        calls.append({name: arguments[name] for name in recorded})
        return types.SimpleNamespace(
            log=lambda metrics, step: calls.append((step, metrics)),
            finish=lambda exit_code: calls.append(exit_code),
        )

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    return calls


def log_to_wandb(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(to_json(Experiment(name="x"))))
    with MetricsLog(folder, 0, wandb_project="p") as log:
        log.write(3, {"loss": 1.0})


def test_metrics_are_mirrored_to_wandb(tmp_path, wandb_calls):
    log_to_wandb(tmp_path / "run")
    init, *others = wandb_calls
    assert (init["project"], init["name"], init["resume"]) == ("p", "run", "allow")
    assert init["config"]["name"] == "x"
    assert others == [(3, {"loss": 1.0}), 0]


def test_a_resumed_run_has_the_same_id_in_wandb_and_other_runs_have_other_ids(
    tmp_path, wandb_calls
):
    # Two sweeps over the same fields have folders of the same name.
    for folder in ("a/seed=0", "a/seed=0", "b/seed=0"):
        log_to_wandb(tmp_path / folder)
    first, resumed, other = (call["id"] for call in wandb_calls if isinstance(call, dict))
    assert first == resumed != other


def test_a_missing_wandb_library_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(WorkdirError, match=r"W&B is not installed.*\[wandb\]"):
        MetricsLog(tmp_path, 0, wandb_project="p")


def test_the_environment_names_versions_device_and_compute_dtype(experiment, monkeypatch):
    environment = workdir.environment(experiment)
    assert environment["packages"]["jax"] and environment["device"].endswith("cpu")
    assert environment["compute_dtype"] == "float32"
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert workdir.environment(experiment)["compute_dtype"] == "bfloat16"


@pytest.mark.parametrize("installed", [True, False])
def test_the_environment_says_whether_kernels_can_run(experiment, monkeypatch, installed):
    def version(name):
        if name == "jax-triton" and not installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return f"{name} 1.0"

    monkeypatch.setattr(importlib.metadata, "version", version)
    packages = workdir.environment(experiment)["packages"]
    assert packages["jax"] == "jax 1.0"
    assert packages.get("jax-triton") == ("jax-triton 1.0" if installed else None)


def test_a_machine_without_git_has_an_environment(experiment, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    environment = workdir.environment(experiment)
    assert environment["git"] is None and environment["packages"]["jax"] == jax.__version__


def test_a_run_continues_whose_environment_lacks_the_compute_dtype(experiment, tmp_path, capsys):
    card = {"sha256": {"items": "1"}}
    earlier = workdir.environment(experiment)
    del earlier["compute_dtype"]
    (tmp_path / "environments.jsonl").write_text(json.dumps(earlier) + "\n")
    workdir.claim(tmp_path, experiment, card)
    assert "continues with another" not in capsys.readouterr().err
    lines = (tmp_path / "environments.jsonl").read_text().splitlines()
    assert [json.loads(line).get("compute_dtype") for line in lines] == [None, "float32"]


def renamed(experiment):
    """The same experiment with the name "longer"."""
    return dataclasses.replace(experiment, name="longer")


@pytest.mark.parametrize("unreadable", [False, True], ids=["readable", "unreadable config"])
def test_a_new_run_replaces_a_start_that_saved_no_checkpoint(
    unreadable, experiment, tmp_path, capsys
):
    card = {"sha256": {"items": "1"}}
    workdir.claim(tmp_path, experiment, card)
    with MetricsLog(tmp_path, 0) as log:
        log.write(1, {"loss": 9.0}, {"speed": 1.0})
    (tmp_path / "profile").mkdir()
    (tmp_path / "budget.json").write_text("{}")
    (tmp_path / "log.txt").write_text("$ python\n")
    # Orbax uses this name until the checkpoint is complete.
    (tmp_path / "checkpoints" / "8.orbax-checkpoint-tmp").mkdir(parents=True)
    capsys.readouterr()
    workdir.claim(tmp_path, experiment, card)
    assert (tmp_path / "metrics.jsonl").exists() and not capsys.readouterr().err
    path = tmp_path / "config.json"
    if unreadable:
        path.write_text(path.read_text().replace("linseqrec.models", "gone"))
    other_card = {"sha256": {"items": "2"}}
    workdir.claim(tmp_path, renamed(experiment), other_card)
    notice = capsys.readouterr().err
    assert "replaces an earlier start that saved no checkpoint\n  " in notice
    assert ("gone.recgrela" if unreadable else "name: 'recgrela' -> 'longer'") in notice
    assert "\n  other data\n" in notice
    assert saved_run.read_experiment(tmp_path) == renamed(experiment)
    assert saved_run.read_card(tmp_path) == other_card
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "card.json",
        "environments.jsonl",
        "log.txt",
        "checkpoints",
    }


@pytest.mark.parametrize(
    "checkpoint",
    ["checkpoints/8", "checkpoints/damaged/8-0", "checkpoints/sha256/8.json"],
    ids=["saved", "damaged", "digests only"],
)
def test_another_run_cannot_use_a_workdir_with_a_checkpoint(checkpoint, experiment, tmp_path):
    card = {"sha256": {"items": "1"}}
    workdir.claim(tmp_path, experiment, card)
    (tmp_path / checkpoint).mkdir(parents=True)
    with pytest.raises(WorkdirError, match="'recgrela' -> 'longer'"):
        workdir.claim(tmp_path, renamed(experiment), card)
    with pytest.raises(WorkdirError, match="on other data"):
        workdir.claim(tmp_path, experiment, {"sha256": {"items": "2"}})


def test_an_allowed_change_is_recorded(experiment, tmp_path):
    card = {"sha256": {"items": "1"}}
    workdir.claim(tmp_path, experiment, card)
    (tmp_path / "checkpoints" / "8").mkdir(parents=True)
    longer = renamed(experiment)
    with pytest.raises(WorkdirError, match="change with --allow_config_change="):
        workdir.claim(tmp_path, longer, card)
    with pytest.raises(
        WorkdirError, match="--allow_config_change=data.lenght: the experiment has no such"
    ):
        workdir.claim(tmp_path, longer, card, allowed_changes=["name", "data.lenght"])
    # The same command works a second time, though nothing differs any more.
    for _ in range(2):
        changes = workdir.claim(tmp_path, longer, card, allowed_changes=["name", "data.length"])
        workdir.record_changes(tmp_path, longer, changes)
    assert saved_run.read_experiment(tmp_path) == longer
    (change,) = (tmp_path / "config_changes.jsonl").read_text().splitlines()
    assert "-> 'longer'" in json.loads(change)["name"]


def test_what_chooses_the_best_checkpoint_cannot_change(experiment, tmp_path):
    """NDCG@10 without a filter and with one do not compare."""
    card, field = {"sha256": {"items": "1"}}, "evaluation.filter_seen"
    workdir.claim(tmp_path, experiment, card)
    (tmp_path / "checkpoints" / "8").mkdir(parents=True)
    other = override(experiment, {field: ("all", "none")})
    with pytest.raises(WorkdirError, match=rf"chosen by other validations.*\n  {field}"):
        workdir.claim(tmp_path, other, card, allowed_changes=[field])
    other = override(experiment, {"evaluation.ties": "pessimistic"})
    with pytest.raises(WorkdirError, match=r"chosen by other validations.*\n  evaluation.ties"):
        workdir.claim(tmp_path, other, card, allowed_changes=["evaluation.ties"])
    # The first of two filters has chosen it.
    other = override(experiment, {field: ("none",)})
    assert [*workdir.claim(tmp_path, other, card, allowed_changes=[field])] == [field]


def test_the_configuration_of_a_run_with_results_cannot_change(experiment, tmp_path):
    card = {"sha256": {"items": "1"}}
    workdir.claim(tmp_path, experiment, card)
    (tmp_path / "results.json").write_text("{}")
    (tmp_path / "checkpoints" / "8").mkdir(parents=True)
    workdir.claim(tmp_path, experiment, card)
    with pytest.raises(WorkdirError, match="or set these fields back\n  name"):
        workdir.claim(tmp_path, renamed(experiment), card)
    with pytest.raises(WorkdirError, match="has ended and has results on the test split"):
        workdir.claim(tmp_path, renamed(experiment), card, allowed_changes=["name"])


@pytest.mark.parametrize("ended", [False, True])
def test_the_same_data_may_stand_in_another_folder(ended, experiment, tmp_path):
    card = {"sha256": {"items": "1"}}
    workdir.claim(tmp_path, experiment, card)
    (tmp_path / "checkpoints" / "8").mkdir(parents=True)
    if ended:
        (tmp_path / "results.json").write_text("{}")
    data = dataclasses.replace(experiment.data, folder="moved")
    moved = dataclasses.replace(experiment, data=data)
    workdir.record_changes(tmp_path, moved, workdir.claim(tmp_path, moved, card))
    # What has ended stays as it is.
    assert saved_run.read_experiment(tmp_path) == (experiment if ended else moved)
    with pytest.raises(WorkdirError, match="on other data"):
        workdir.claim(tmp_path, moved, {"sha256": {"items": "2"}})


def test_a_dataset_folder_is_no_workdir(experiment, source, make_run, tmp_path):
    dataset = source.dataset
    users, items = (list(map(str, range(n))) for n in (dataset.num_users, dataset.num_items))
    write_dataset(tmp_path / "data", dataset, users, items)
    before = {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()}
    with pytest.raises(WorkdirError, match="data is a dataset folder: choose another"):
        train(make_run(experiment), tmp_path / "data")
    assert {path.name: path.read_bytes() for path in (tmp_path / "data").iterdir()} == before


def test_another_environment_is_printed_and_recorded(experiment, tmp_path, monkeypatch, capsys):
    card = {"sha256": {"items": "1"}}
    workdir.claim(tmp_path, experiment, card)
    workdir.claim(tmp_path, experiment, card)
    tpu_environment = workdir.environment(experiment) | {"device": "8 x TPU"}
    monkeypatch.setattr(workdir, "environment", lambda _: tpu_environment)
    workdir.claim(tmp_path, experiment, card)
    assert "continues with another device: 1 x cpu -> 8 x TPU" in capsys.readouterr().err
    assert len((tmp_path / "environments.jsonl").read_text().splitlines()) == 2


def test_the_revision_is_that_of_the_library_s_own_checkout(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True)

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "mine")
    inside = tmp_path / ".venv" / "site-packages"
    inside.mkdir(parents=True)
    assert workdir._revision(inside) is None
    assert len(workdir._revision(tmp_path)) == 12


def test_who_looks_whether_a_workdir_is_locked_keeps_nobody_out(tmp_path, monkeypatch):
    tries = []

    def locked_at_first(*_):
        tries.append(1)
        if len(tries) < 3:
            raise BlockingIOError

    monkeypatch.setattr(workdir.fcntl, "flock", locked_at_first)
    monkeypatch.setattr(workdir.time, "sleep", lambda _: None)
    with workdir.lock(tmp_path):
        assert len(tries) == 3


@pytest.mark.parametrize("content", [b"", b"{", b"[1]\n", b"\xff\n", bytes(40)])
def test_a_damaged_environment_stops_no_run(content, experiment, tmp_path, capsys):
    card = {"sha256": {"items": "1"}}
    workdir.claim(tmp_path, experiment, card)
    path = tmp_path / "environments.jsonl"
    good = path.read_bytes()
    path.write_bytes(content)
    workdir.claim(tmp_path, experiment, card)
    assert path.read_bytes().endswith(good)
    assert ("its last line is damaged" in capsys.readouterr().err) == bool(content)
    path.unlink()
    path.mkdir()
    workdir.claim(tmp_path, experiment, card)
    assert "cannot be read (Is a directory)" in capsys.readouterr().err


def test_damaged_records_are_counted_and_kept(tmp_path, capsys):
    lines = [b'{"step": 1, "loss": 2.0}\n', b'{"step": 2, "lo\n', b"\xff\xfe\n", b'{"loss": 1}\n']
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(lines))
    assert list(saved_run.read_metrics(tmp_path)) == [{"step": 1, "loss": 2.0}]
    assert f"{path}: 3 of 4 lines are damaged and left out; line 2: " in capsys.readouterr().err
    with MetricsLog(tmp_path, 1):
        pass
    assert path.read_bytes() == lines[0]
    assert (tmp_path / "metrics.damaged.jsonl").read_bytes() == b"".join(lines)
    path.write_bytes(bytes(40))
    assert list(saved_run.read_metrics(tmp_path)) == []
    assert "1 of 1 lines are damaged" in capsys.readouterr().err


def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, capsys):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(workdir.fcntl, "flock", no_locks)
    with workdir.lock(tmp_path):
        assert "this file system has no locks" in capsys.readouterr().err


@pytest.mark.parametrize("ended", [True, False])
def test_a_run_whose_checkpoints_are_gone_does_not_train_again(ended, experiment, tmp_path):
    card = {"sha256": {"items": "1"}}
    workdir.claim(tmp_path, experiment, card)
    if ended:
        (tmp_path / "results.json").write_text("{}")
    else:
        (tmp_path / "checkpoints" / "sha256").mkdir(parents=True)
        (tmp_path / "checkpoints" / "sha256" / "8.json").write_text("{}")
    with pytest.raises(WorkdirError, match="checkpoints has no.*back, or choose another --workdir"):
        workdir.claim(tmp_path, experiment, card)
