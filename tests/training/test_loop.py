import dataclasses
import json
from unittest.mock import Mock

import jax
import numpy as np
import pytest

from linseqrec.config import Experiment, TrainingConfig
from linseqrec.config_json import from_json, to_json
from linseqrec.data.dataset import Dataset
from linseqrec.data.source import Source
from linseqrec.data.splits import SplitError, from_folds
from linseqrec.errors import WorkdirError
from linseqrec.runs.figures import write_figures
from linseqrec.runs.results import evaluate_baselines, write_results
from linseqrec.training import loop, saved_run, workdir
from linseqrec.training.checkpoint import CheckpointError, Checkpoints, Progress
from linseqrec.training.loop import NonFiniteError, Schedule, train
from linseqrec.training.preemption import Preempted, Preemption
from linseqrec.training.run import Run
from linseqrec.training.step import StepRunner


def records(folder):
    return list(saved_run.read_metrics(folder))


class Stopped(Exception):
    pass


def stop_at(monkeypatch, step):
    """Makes the next run's step raise before `step`, as a kill would."""
    original, calls = StepRunner.step, []

    def stopping(self, batch):
        calls.append(1)
        if len(calls) == step:
            raise Stopped
        return original(self, batch)

    monkeypatch.setattr(StepRunner, "step", stopping)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"data": {"length": 6, "stride": 4, "phase": "random"}},
        {"data": {"plan": "prefixes", "batch_size": 32}},
        {"loss": {"kind": "sampled", "negatives": 2}, "data": {"batch_size": 1}},
    ],
    ids=["fixed", "random", "prefixes", "drawn negatives"],
)
def test_a_stopped_run_ends_as_an_unbroken_one(
    experiment, make_run, tmp_path, monkeypatch, changes
):
    whole = make_run(experiment, **changes)
    expected = train(whole, tmp_path / "whole")
    best = int(expected.step)

    broken = make_run(experiment, **changes)
    steps = broken.batches.steps_per_epoch
    stop_at(monkeypatch, 2 * steps + 2)
    with pytest.raises(Stopped):
        train(broken, tmp_path / "broken")
    # It had gone on after its last checkpoint: those records must not appear twice.
    assert records(tmp_path / "broken")[-1]["step"] > 2 * steps
    resumed = train(make_run(experiment, **changes), tmp_path / "broken")

    assert int(resumed.step) == best
    for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(one, other)
    assert records(tmp_path / "broken") == records(tmp_path / "whole")


def test_a_validation_is_logged_once_even_if_its_save_failed(
    experiment, make_run, tmp_path, monkeypatch
):
    train(make_run(experiment), tmp_path / "whole")
    # SIGTERM interrupts the first validation, so its step is saved without it.
    with monkeypatch.context() as patch, pytest.raises(Preempted):
        patch.setattr(Run, "evaluate", Mock(side_effect=Preempted))
        train(make_run(experiment), tmp_path / "broken")
    # The next start logs the validation, and the disk is full.
    with monkeypatch.context() as patch, pytest.raises(CheckpointError):
        patch.setattr(Checkpoints, "save", Mock(side_effect=CheckpointError))
        train(make_run(experiment), tmp_path / "broken")
    train(make_run(experiment), tmp_path / "broken")
    assert records(tmp_path / "broken") == records(tmp_path / "whole")


def test_a_finished_run_is_not_trained_again(experiment, make_run, tmp_path, monkeypatch):
    state = train(make_run(experiment), tmp_path)
    best = int(state.step)
    again = make_run(experiment)
    stop_at(monkeypatch, 1)
    restored = train(again, tmp_path)
    assert int(restored.step) == best
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(restored), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_run_that_was_made_shorter_ends_where_it_is():
    """Its last checkpoint, saved between two validations, is past the new end."""
    schedule = Schedule(TrainingConfig(), num_steps=1000, evaluate_every=300, preemption=Mock())
    progress = Progress({}, validated_step=900)
    assert schedule.validates(1150, progress) and not schedule.finished(progress)
    progress = progress.after_validation(1150, 0.1)
    assert schedule.finished(progress) and not schedule.validates(1150, progress)


def test_the_best_checkpoint_is_kept_and_patience_ends_the_run(
    experiment, make_run, tmp_path, capsys
):
    """With a learning rate that wrecks the model, an early validation stays the best one."""
    run = make_run(
        experiment,
        optimizer={"learning_rate": 0.3},
        training={"num_epochs": 30, "patience": 3},
    )
    state = train(run, tmp_path)
    best = int(state.step)
    scores = {
        record["step"]: record["validation/none/NDCG@10"]
        for record in records(tmp_path)
        if "validation/none/NDCG@10" in record
    }
    assert best == max(scores, key=scores.__getitem__)
    assert max(scores) - best == 3 * run.batches.steps_per_epoch < run.num_steps
    printed = capsys.readouterr().out
    assert f"stopped early at step {max(scores)}: 3 validations without a better NDCG@10" in printed
    # Without a terminal, each log is a line.
    losses = {f"step {each['step']}": each.get("train/loss") for each in records(tmp_path)}
    assert all(f"{step} epoch " in printed for step in losses)
    assert sum(" events/s" in line for line in printed.splitlines()) == len(losses)
    measured = run.evaluate(state.params, "validation").metrics["NDCG@10"]
    assert measured == scores[best]
    with Checkpoints(tmp_path / "checkpoints", read_only=True) as checkpoints:
        assert {checkpoints.resolve("best"), checkpoints.resolve("latest")} == {best, max(scores)}
        with pytest.raises(CheckpointError, match=f"no checkpoint '7' .* steps {best}"):
            checkpoints.resolve("7")


@pytest.mark.parametrize("filters", [("none", "all"), ("all", "none")])
def test_the_first_filter_selects_and_is_named(experiment, make_run, tmp_path, capsys, filters):
    run = make_run(
        experiment,
        optimizer={"learning_rate": 0.03},
        training={"num_epochs": 12},
        evaluation={"filter_seen": filters},
    )
    state = train(run, tmp_path)
    best = int(state.step)
    scores = {
        name: {
            record["step"]: record[f"validation/{name}/NDCG@10"]
            for record in records(tmp_path)
            if f"validation/{name}/NDCG@10" in record
        }
        for name in filters
    }
    chosen = {name: max(values, key=values.__getitem__) for name, values in scores.items()}
    assert chosen["none"] != chosen["all"] and best == chosen[filters[0]]
    words = "seen items filtered" if filters[0] == "all" else "seen items not filtered"
    assert f"best step {best} by validation NDCG@10, {words}\n" in capsys.readouterr().out
    results = write_results(run, state, tmp_path)
    assert results["selected_by"] == f"validation NDCG@10, {words}"


@pytest.mark.parametrize(("length", "named"), [(6, True), (64, False)])
def test_counting_within_the_length_stands_beside_counting_all(experiment, make_run, length, named):
    run = make_run(experiment, data={"length": length})
    found = evaluate_baselines(run, "test")
    assert [name for name in found if name.startswith("Personal Markov")] == ["Personal Markov"] + [
        f"Personal Markov, last {length} events"
    ] * named
    if named:
        within, whole = found[f"Personal Markov, last {length} events"], found["Personal Markov"]
        long = run.evaluator("test").lengths > length
        assert (within.ranks["none"] != whole.ranks["none"])[long].any()
        np.testing.assert_array_equal(within.ranks["none"][~long], whole.ranks["none"][~long])


@pytest.mark.parametrize(
    ("training", "sigterm", "last_good"),
    [
        ({}, False, 4),
        ({"log_every": 1000, "save_minutes": 0.0}, False, 5),
        ({"log_every": 1000}, True, 4),
    ],
    ids=["log", "save", "SIGTERM"],
)
def test_non_finite_loss_stops_the_run_with_its_step(
    experiment, make_run, tmp_path, monkeypatch, training, sigterm, last_good
):
    """The halted state is seen before it is logged or saved: no checkpoint holds it."""
    run, preemption = make_run(experiment, training=training), Preemption()
    assert run.batches.steps_per_epoch == 4
    original, calls = StepRunner.step, []

    def poisoned(self, batch):
        calls.append(1)
        if len(calls) == 6:
            batch = dataclasses.replace(batch, weights=np.full_like(batch.weights, np.inf))
            preemption.requested = sigterm
        return original(self, batch)

    monkeypatch.setattr(StepRunner, "step", poisoned)
    message = f"step 6 is not finite.* last good checkpoint is {last_good}"
    with pytest.raises(NonFiniteError, match=message):
        train(run, tmp_path, preemption=preemption)
    with Checkpoints(tmp_path / "checkpoints", read_only=True) as checkpoints:
        state, _ = checkpoints.restore_latest(run.step.initial_state())
    assert int(state.step) == last_good and not state.halted


@pytest.mark.parametrize(
    ("clip_norm", "advice"),
    [
        (0.0, "train in another --workdir with optimizer.clip_norm, for instance 1.0"),
        (0.5, r"raise optimizer.warmup_steps \(it is 3\)"),
    ],
)
def test_a_run_that_clips_is_not_told_to_clip(experiment, make_run, clip_norm, advice):
    run = make_run(experiment, optimizer={"clip_norm": clip_norm, "warmup_steps": 3})
    with pytest.raises(NonFiniteError, match=rf"\(it is 0.001\), or {advice}\.$"):
        loop._check_finite(run, Mock(halted=True, step=0), Mock(sound_steps=lambda: [4]))


def test_a_workdir_belongs_to_one_configuration_and_one_log(experiment, make_run, tmp_path):
    run = make_run(experiment)
    card = run.source.dataset.card
    workdir.claim(tmp_path, experiment, card)
    (tmp_path / "checkpoints" / "8").mkdir(parents=True)
    workdir.claim(tmp_path, experiment, card)
    changed = make_run(experiment, optimizer={"learning_rate": 0.5}).experiment
    with pytest.raises(WorkdirError, match="optimizer.learning_rate: 0.001 -> 0.5"):
        workdir.claim(tmp_path, changed, card)
    other = card | {"sha256": card["sha256"] | {"items": "0"}}
    with pytest.raises(WorkdirError, match=r"other data \(items differ\)"):
        workdir.claim(tmp_path, experiment, other)
    with pytest.raises(WorkdirError, match="not the workdir of a run"):
        saved_run.read_experiment(tmp_path / "elsewhere")


def test_another_model_does_not_take_the_checkpoint(experiment, make_run, tmp_path):
    train(make_run(experiment), tmp_path)
    wider = make_run(experiment, model={"width": 32})
    with Checkpoints(tmp_path / "checkpoints", read_only=True) as checkpoints:
        with pytest.raises(
            CheckpointError,
            match=r"does not fit.*\n.*optimizer/0/mu/.*\(16,\) saved, \(32,\) wanted",
        ):
            checkpoints.restore(checkpoints.resolve("best"), wider.step.initial_state())
    # A change that is allowed and does not fit leaves the workdir as it is.
    with pytest.raises(CheckpointError, match="does not fit"):
        train(wider, tmp_path, allowed_changes=["model.width"])
    assert saved_run.read_experiment(tmp_path) == experiment


def test_results_can_be_recomputed_and_are_read_once(experiment, make_run, tmp_path, monkeypatch):
    run = make_run(experiment)
    state = train(run, tmp_path)
    best = int(state.step)
    results = write_results(run, state, tmp_path)
    assert results == json.loads((tmp_path / "results.json").read_text())
    assert results["step"] == best
    assert results["selected_by"] == "validation NDCG@10, seen items not filtered"
    baselines = {"Popularity", "Markov", "Decayed Markov", "Personal Markov"}
    assert baselines | {"recgrela"} <= set(results["test"])

    # The metrics follow from the per-target ranks, and a restored checkpoint gives the same ranks.
    dump = np.load(tmp_path / "ranks" / "test.npz")
    metrics = results["test"]["recgrela"]["metrics"]
    for name in ("none", "all"):
        ranks = dump[f"rank_{name}"]
        assert metrics[name]["HR@10"] == np.mean(ranks <= 10)
        gains = np.where(ranks <= 10, 1 / np.log2(1 + ranks), 0)
        assert metrics[name]["NDCG@10"] == pytest.approx(gains.mean(), abs=1e-15)
    fresh = make_run(from_json(to_json(saved_run.read_experiment(tmp_path)), Experiment))
    with Checkpoints(tmp_path / "checkpoints", read_only=True) as checkpoints:
        restored = checkpoints.restore(best, fresh.step.initial_state())
    assert fresh.evaluate(restored.params, "test").summary()["metrics"] == metrics

    # The best baseline's ranks are kept for a comparison target by target.
    with np.load(tmp_path / "ranks" / "best_baseline.npz") as best_baseline:
        for name in ("none", "all"):
            summary = results["test"][str(best_baseline[f"name_{name}"])]
            assert summary["metrics"][name]["NDCG@10"] == max(
                results["test"][baseline]["metrics"][name]["NDCG@10"]
                for baseline in set(results["test"]) - {"recgrela"}
            )
            hits = np.mean(best_baseline[f"rank_{name}"] <= 10)
            assert summary["metrics"][name]["HR@10"] == hits

    paths = write_figures([tmp_path], tmp_path / "figures")
    assert [path.name for path in paths] == [
        "learning_curves.png",
        "by_length.png",
    ]

    monkeypatch.setattr(type(run), "evaluate", lambda *_: pytest.fail("test was read twice"))
    assert write_results(run, state, tmp_path) == results


@pytest.mark.parametrize("last", [1, 2], ids=["no test target", "no validation target"])
def test_a_split_without_targets_is_refused_before_a_step(experiment, tmp_path, last):
    dataset = Dataset.from_arrays(
        [1, 2, 3, 2, 1, 3], [*range(6)], [0, 3, 6], folds=[0, 0, last] * 2
    )
    run = Run.of(experiment, Source(dataset, from_folds(dataset), None))
    missing = {1: "test", 2: "validation"}[last]
    with pytest.raises(SplitError, match=f"split 'folds' has no {missing} targets: take another"):
        train(run, tmp_path / "run")
    assert not (tmp_path / "run").exists()
