import json

import jax
import numpy as np
import pytest

from linseqrec.errors import WorkdirError
from linseqrec.training import budget, distributed, saved_run
from linseqrec.training.budget import Costs, measure
from linseqrec.training.loop import train
from linseqrec.training.optimizer import learning_rate
from linseqrec.training.run import Run
from linseqrec.training.step import CompiledStep
from tests.training.test_loop import Stopped, records, stop_at

COSTS = Costs(spent=10.0, compilation=5.0, step=0.5, validation=15.0)
# At three seconds a step, a minute is more than one epoch of the small experiment.
SLOW = Costs(spent=10.0, compilation=4.0, step=3.0, validation=1.0)


@pytest.fixture
def costs(monkeypatch):
    """Makes the measurement return the costs `SLOW`; counts the measurements."""
    calls = []
    monkeypatch.setattr(budget, "measure", lambda run, seconds: calls.append(seconds) or SLOW)
    return calls


@pytest.mark.parametrize(("seconds", "every"), [(600, 10), (600, 100), (37.0, 5), (1.0, 5)])
def test_the_steps_and_their_validations_fit(seconds, every):
    steps = COSTS.steps_within(seconds, every)

    def needed(steps):
        validations = steps / every + 1
        return COSTS.spent + COSTS.compilation + steps * COSTS.step + validations * COSTS.validation

    assert steps == 1 or needed(steps) <= seconds
    assert needed(steps + 1) > seconds


def test_the_costs_of_a_run_are_measured(experiment, source):
    # A step of its own, which no other test has compiled.
    costs = measure(Run.of(experiment, source), seconds=10.0)
    assert 0 < costs.step < costs.compilation < costs.spent and 0 < costs.validation < costs.spent


def test_a_validation_of_few_batches_is_timed_without_its_compilations(
    experiment, make_run, monkeypatch
):
    """The first pass compiles a program for each width of its rows."""
    passes = [np.array([9.0, 9.0]), np.array([1.0, 2.0])]
    monkeypatch.setattr(budget, "_validation_seconds", lambda run, state: passes.pop(0))
    assert measure(make_run(experiment), seconds=1.0).validation == 3.0
    passes = [np.array([9.0, 9.0, *[1.0] * 10])]
    assert measure(make_run(experiment), seconds=1.0).validation == 12.0


def test_the_first_process_decides_how_many_steps_are_timed(experiment, make_run, monkeypatch):
    run, place, placed = make_run(experiment), CompiledStep.place, []
    monkeypatch.setattr(
        CompiledStep, "place", lambda step, batch: placed.append(batch) or place(step, batch)
    )
    monkeypatch.setattr(distributed, "on_first", lambda decide: 3)
    measure(run, seconds=1e9)
    # Two compile, and one tells the first process how many fit.
    assert len(placed) == 2 + 1 + 3


def test_the_schedule_ends_with_the_budget(experiment, make_run, tmp_path, costs, monkeypatch):
    optimizer = {"schedule": "cosine", "warmup_steps": 500, "learning_rate": 0.01}
    training = {"num_epochs": 20, "max_minutes": 1.0}
    run = make_run(experiment, optimizer=optimizer, training=training)
    lengths = []
    monkeypatch.setattr(
        "linseqrec.training.run.learning_rate",
        lambda config, num_steps: lengths.append(num_steps) or learning_rate(config, num_steps),
    )
    train(run, tmp_path)
    (num_steps,) = set(lengths)
    assert records(tmp_path)[-1]["step"] == num_steps < run.num_steps
    assert num_steps == SLOW.steps_within(60, run.evaluate_every)
    assert costs == [60.0]
    rate = learning_rate(run.experiment.optimizer, num_steps)
    assert float(rate(num_steps)) == 0.0 and float(rate(num_steps // 10)) == pytest.approx(0.01)


def test_a_stopped_run_keeps_its_length(experiment, make_run, tmp_path, costs, monkeypatch):
    changes = {"training": {"num_epochs": 20, "max_minutes": 1.0}}
    expected = train(make_run(experiment, **changes), tmp_path / "whole")
    # The run that is stopped begins with the first length; a resumption measures nothing.
    broken = make_run(experiment, **changes)
    with monkeypatch.context() as patch:
        stop_at(patch, broken.batches.steps_per_epoch + 2)
        with pytest.raises(Stopped):
            train(broken, tmp_path / "broken")
    assert len(costs) == 2
    resumed = train(make_run(experiment, **changes), tmp_path / "broken")
    assert len(costs) == 2
    for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(one, other)
    assert list(saved_run.read_metrics(tmp_path / "broken")) == records(tmp_path / "whole")

    (tmp_path / "broken" / budget.FILE).write_text("{")
    with pytest.raises(WorkdirError, match="budget.json does not say how many steps"):
        train(make_run(experiment, **changes), tmp_path / "broken")


def test_a_run_may_get_a_budget_when_it_goes_on(experiment, make_run, tmp_path, costs, monkeypatch):
    unlimited = make_run(experiment, training={"num_epochs": 20})
    with monkeypatch.context() as patch:
        stop_at(patch, unlimited.batches.steps_per_epoch + 2)
        with pytest.raises(Stopped):
            train(unlimited, tmp_path)
    limited = make_run(experiment, training={"num_epochs": 20, "max_minutes": 1.0})
    train(limited, tmp_path, allowed_changes=["training.max_minutes"])
    assert costs == [60.0]
    assert records(tmp_path)[-1]["step"] == SLOW.steps_within(60, limited.evaluate_every)


def test_a_budget_that_is_long_enough_changes_nothing(experiment, make_run, tmp_path, costs):
    run = make_run(experiment, training={"num_epochs": 1, "max_minutes": 1_000.0})
    assert budget.within_budget(run, tmp_path, keeps_length=False) is run
    saved = json.loads((tmp_path / budget.FILE).read_text())
    assert saved["num_steps"] == run.num_steps
    assert len(costs) == 1
    # Resumed with fewer epochs, it is as short as these.
    shorter = make_run(experiment, training={"num_epochs": 0.5, "max_minutes": 1_000.0})
    resumed = budget.within_budget(shorter, tmp_path, keeps_length=True)
    assert resumed.num_steps == shorter.num_steps < run.num_steps and len(costs) == 1
