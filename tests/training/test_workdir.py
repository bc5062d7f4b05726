import json
import struct
import sys
import types

import pytest
from tensorboardX.proto import event_pb2

from linseqrec.config import Experiment
from linseqrec.config_fields import to_json
from linseqrec.data.dataset import Dataset, DatasetError, write_dataset
from linseqrec.data.source import DataConfig
from linseqrec.training import workdir
from linseqrec.training.log import MetricsLog


def test_a_line_cut_short_is_left_out_and_written_again(tmp_path):
    whole = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.5}]
    lines = [json.dumps(record) + "\n" for record in whole]
    (tmp_path / "metrics.jsonl").write_text("".join(lines) + '{"step": 3, "lo')
    assert list(workdir.read_metrics(tmp_path)) == whole
    with MetricsLog(tmp_path, 1) as log:
        log.write(2, {"loss": 1.25})
    assert list(workdir.read_metrics(tmp_path)) == [whole[0], {"step": 2, "loss": 1.25}]


def test_metrics_are_mirrored_to_tensorboard(tmp_path):
    with MetricsLog(tmp_path, 1) as log:
        log.write(2, {"loss": 1.25, "norm": 0.5}, {"speed": 9.0})
        # On disk before the file is closed.
        events = list(read_events(tmp_path / "tensorboard"))
    version, start, *scalars = events
    assert version.file_version == "brain.Event:2"
    assert (start.session_log.status, start.step) == (event_pb2.SessionLog.START, 2)
    said = [(event.step, *event.summary.value) for event in scalars]
    assert [(step, value.tag, value.simple_value) for step, value in said] == [
        (2, "loss", 1.25),
        (2, "norm", 0.5),
        (2, "speed", 9.0),
    ]


def read_events(folder):
    """The events of the one file in a folder: records of length, checksum, bytes, checksum."""
    (path,) = folder.iterdir()
    data = path.read_bytes()
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        yield event_pb2.Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]


@pytest.fixture
def wandb(monkeypatch):
    """What a stand-in with W&B's own calls is told: no test reaches the service."""
    said = []

    def init(**arguments):
        kept = ("project", "name", "id", "resume", "config")
        said.append({name: arguments[name] for name in kept})
        return types.SimpleNamespace(
            log=lambda metrics, step: said.append((step, metrics)),
            finish=lambda exit_code: said.append(exit_code),
        )

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    return said


def mirror(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(to_json(Experiment(name="x"))))
    with MetricsLog(folder, 0, wandb_project="p") as log:
        log.write(3, {"loss": 1.0})


def test_metrics_are_mirrored_to_wandb(tmp_path, wandb):
    mirror(tmp_path / "run")
    began, *rest = wandb
    assert (began["project"], began["name"], began["resume"]) == ("p", "run", "allow")
    assert began["config"]["name"] == "x"
    assert rest == [(3, {"loss": 1.0}), 0]


def test_a_run_keeps_its_id_in_wandb_and_shares_it_with_none(tmp_path, wandb):
    # As two sweeps over the same fields name their folders.
    for folder in ("a/seed=0", "a/seed=0", "b/seed=0"):
        mirror(tmp_path / folder)
    first, resumed, other = (said["id"] for said in wandb if isinstance(said, dict))
    assert first == resumed != other


def test_wandb_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(workdir.WorkdirError, match=r"W&B is not installed.*\[wandb\]"):
        MetricsLog(tmp_path, 0, wandb_project="p")


def test_a_result_names_what_it_depends_on():
    environment = workdir.environment()
    assert environment["packages"]["jax"] and environment["device"].endswith("cpu")


def leave(folder, trace):
    """Leaves the trace of a checkpoint."""
    (folder / trace).mkdir(parents=True)


@pytest.mark.parametrize("unreadable", [False, True])
def test_a_start_that_saved_nothing_gives_way_with_its_records(
    unreadable, experiment, tmp_path, capsys
):
    card = {"sha256": {"items": "1"}}
    workdir.claim(tmp_path, experiment, card)
    with MetricsLog(tmp_path, 0) as log:
        log.write(1, {"loss": 9.0}, {"speed": 1.0})
    (tmp_path / "profile").mkdir()
    (tmp_path / "log.txt").write_text("$ python\n")
    # Orbax had not moved its first checkpoint to its place.
    leave(tmp_path, "checkpoints/8.orbax-checkpoint-tmp")
    capsys.readouterr()
    workdir.claim(tmp_path, experiment, card)
    assert (tmp_path / "metrics.jsonl").exists() and not capsys.readouterr().err
    path = tmp_path / "config.json"
    if unreadable:
        path.write_text(path.read_text().replace("linseqrec.models", "gone"))
    longer = experiment.__class__(**{**vars(experiment), "name": "longer"})
    other = {"sha256": {"items": "2"}}
    workdir.claim(tmp_path, longer, other)
    said = capsys.readouterr().err
    assert "saved no checkpoint, and this one takes its place\n  " in said
    assert ("gone.recgrela" if unreadable else "name: 'recgrela' -> 'longer'") in said
    assert "\n  other data\n" in said
    assert workdir.read_experiment(tmp_path) == longer and workdir.read_card(tmp_path) == other
    left = {"config.json", "card.json", "environments.jsonl", "log.txt", "checkpoints"}
    assert {path.name for path in tmp_path.iterdir()} == left


@pytest.mark.parametrize(
    "trace", ["checkpoints/8", "checkpoints/damaged/8-0", "checkpoints/sha256/8.json"]
)
def test_what_was_ever_saved_keeps_its_workdir(trace, experiment, tmp_path):
    card = {"sha256": {"items": "1"}}
    workdir.claim(tmp_path, experiment, card)
    leave(tmp_path, trace)
    longer = experiment.__class__(**{**vars(experiment), "name": "longer"})
    with pytest.raises(workdir.WorkdirError, match="'recgrela' -> 'longer'"):
        workdir.claim(tmp_path, longer, card)
    with pytest.raises(workdir.WorkdirError, match="on other data"):
        workdir.claim(tmp_path, experiment, {"sha256": {"items": "2"}})


def test_an_allowed_change_is_recorded(experiment, tmp_path):
    card = {"sha256": {"items": "1"}}
    workdir.claim(tmp_path, experiment, card)
    leave(tmp_path, "checkpoints/8")
    longer = experiment.__class__(**{**vars(experiment), "name": "longer"})
    with pytest.raises(workdir.WorkdirError, match="name in --allow_config_change"):
        workdir.claim(tmp_path, longer, card)
    with pytest.raises(workdir.WorkdirError, match="allowed to change, but no field: data.lenght"):
        workdir.claim(tmp_path, longer, card, allowed_changes=["name", "data.lenght"])
    # The second time goes on with what the first has changed.
    for _ in range(2):
        workdir.claim(tmp_path, longer, card, allowed_changes=["name", "data.length"])
    assert workdir.read_experiment(tmp_path) == longer
    (change,) = (tmp_path / "config_changes.jsonl").read_text().splitlines()
    assert "-> 'longer'" in json.loads(change)["name"]


def test_a_run_whose_test_split_was_read_does_not_change(experiment, tmp_path):
    card = {"sha256": {"items": "1"}}
    workdir.claim(tmp_path, experiment, card)
    (tmp_path / "results.json").write_text("{}")
    workdir.claim(tmp_path, experiment, card)
    longer = experiment.__class__(**{**vars(experiment), "name": "longer"})
    with pytest.raises(workdir.WorkdirError, match="has ended, and its test split has been read"):
        workdir.claim(tmp_path, longer, card, allowed_changes=["name"])


def test_another_environment_is_told_and_recorded(experiment, tmp_path, monkeypatch, capsys):
    card = {"sha256": {"items": "1"}}
    workdir.claim(tmp_path, experiment, card)
    workdir.claim(tmp_path, experiment, card)
    now = workdir.environment() | {"device": "8 x TPU"}
    monkeypatch.setattr(workdir, "environment", lambda: now)
    workdir.claim(tmp_path, experiment, card)
    assert "goes on with another device: 1 x cpu -> 8 x TPU" in capsys.readouterr().err
    assert len((tmp_path / "environments.jsonl").read_text().splitlines()) == 2


def test_the_data_of_a_run_are_found_where_they_are_said_to_be(tmp_path):
    dataset = Dataset.from_arrays([1, 2, 3, 2, 1, 3], [1, 2, 3, 4, 5, 6], [0, 3, 6])
    write_dataset(tmp_path / "data", dataset, ["a", "b"], ["x", "y", "z"])
    experiment = Experiment(data=DataConfig(folder=str(tmp_path / "data")))
    workdir.claim(tmp_path / "run", experiment, Dataset.open(tmp_path / "data").card)
    assert workdir.load_data(tmp_path / "run").dataset.folder == tmp_path / "data"
    (tmp_path / "data").rename(tmp_path / "moved")
    with pytest.raises(workdir.WorkdirError, match=r"data, which is not there .* by --data=FOLDER"):
        workdir.load_data(tmp_path / "run")
    moved = str(tmp_path / "moved")
    assert workdir.load_data(tmp_path / "run", moved).dataset.user_ids().tolist() == ["a", "b"]
    write_dataset(tmp_path / "data", dataset, ["a", "c"], ["x", "y", "z"])
    with pytest.raises(workdir.WorkdirError, match=r"on other data \(user_ids differ\)"):
        workdir.load_data(tmp_path / "run")
    with pytest.raises(DatasetError, match="elsewhere is no dataset folder"):
        workdir.load_data(tmp_path / "run", str(tmp_path / "elsewhere"))

    workdir.claim(tmp_path / "world", Experiment(), dataset.card)
    with pytest.raises(workdir.WorkdirError, match="generated world 'quick', which has no folder"):
        workdir.load_data(tmp_path / "world", moved)
