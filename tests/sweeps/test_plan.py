import dataclasses
import json

import pytest

from linseqrec.config import Experiment
from linseqrec.data.source import DataConfig, load_source
from linseqrec.errors import WorkdirError
from linseqrec.files import write_json
from linseqrec.models.sasrec import SASRecConfig
from linseqrec.sweeps.plan import check_no_clash, make_plan, plan_table
from linseqrec.training import workdir

EXPERIMENT = Experiment(model=SASRecConfig(), data=DataConfig(world="quick", world_users=60))
AXIS = [{"training.seed": seed} for seed in range(6)]


@pytest.fixture(scope="module")
def card():
    return load_source(EXPERIMENT.data).dataset.card


@pytest.fixture
def folder(tmp_path, card):
    """Runs of seeds: 0 not begun, 1 partial, 2 finished, 3 of another rate, 4 on other data.

    And 5 of another rate, which failed before its first checkpoint.
    """

    def begin(seed, card=card, saved=True, **optimizer):
        training = dataclasses.replace(EXPERIMENT.training, seed=seed)
        changed = dataclasses.replace(EXPERIMENT.optimizer, **optimizer)
        experiment = dataclasses.replace(EXPERIMENT, training=training, optimizer=changed)
        workdir.claim(tmp_path / f"seed={seed}", experiment, card)
        if saved:
            (tmp_path / f"seed={seed}" / "checkpoints" / "8").mkdir(parents=True)

    # A run that failed before it began leaves its log.
    (tmp_path / "seed=0").mkdir()
    (tmp_path / "seed=0" / "log.txt").write_text("error\n")
    begin(1)
    begin(2)
    write_json(tmp_path / "seed=2" / "results.json", {})
    begin(3, learning_rate=0.5)
    begin(4, card={"sha256": card["sha256"] | {"items": "0"}})
    begin(5, saved=False, learning_rate=0.5)
    return tmp_path


def test_a_folder_says_what_is_left_to_do(folder):
    plan = make_plan(EXPERIMENT, AXIS, folder)
    assert [run.state for run in plan] == ["new", "partial", "finished", "clash", "clash", "new"]
    assert [run.experiment.training.seed for run in plan] == [0, 1, 2, 3, 4, 5]
    with workdir.lock(folder / "seed=1"):
        assert [run.state for run in make_plan(EXPERIMENT, AXIS, folder)][:3] == [
            "new",
            "running",
            "finished",
        ]
    waits = make_plan(EXPERIMENT, AXIS, folder, queued={"seed=0", "seed=2"})
    assert [run.state for run in waits][:3] == ["queued", "partial", "finished"]
    assert make_plan(EXPERIMENT, AXIS, folder)[1].state == "partial"
    check_no_clash(plan[:3])
    with pytest.raises(WorkdirError) as caught:
        check_no_clash(plan)
    message = str(caught.value)
    assert "seed=3 holds a run of another configuration" in message
    assert "optimizer.learning_rate: 0.5 -> 0.001" in message
    assert "seed=4 holds a run on other data (items differ)" in message
    assert message.endswith("the sweep has started no run")


def test_a_folder_of_another_version_is_a_clash(folder):
    path = folder / "seed=1" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"colour": "red"}))
    (run,) = make_plan(EXPERIMENT, AXIS[1:2], folder)
    assert run.state == "clash"
    assert "seed=1/config.json: Experiment has no field 'colour'" in run.clash


def test_the_table_says_folder_overrides_and_state(folder):
    lines = plan_table(make_plan(EXPERIMENT, AXIS, folder)).splitlines()
    assert lines[0].split() == ["folder", "overrides", "state"]
    assert lines[3].split() == ["seed=2", "training.seed=2", "finished"]
    assert lines[-1] == "6 runs: 2 new, 1 partial, 1 finished, 2 clash"
