import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType

from linseqrec.models.base import Encoding, SequenceModel
from linseqrec.sharding import DATA, MODEL, SEQUENCE
from linseqrec.training.model import FunctionalModel, split_model
from linseqrec.training.step import StepRunner


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def test_gradient_is_the_mean_over_targets(experiment, make_run):
    """The step's update under plain SGD is that of the mean loss, by finite differences."""
    run = make_run(experiment, model={"dropout": 0.0, "drop_path": 0.0})
    batch = run.batches[0]
    step = dataclasses.replace(run.step, optimizer=optax.sgd(1.0))
    after, metrics = step.update(step.initial_state(), batch)

    encoding = run.model.encode(run.model.fresh()[0], batch.events)
    logits = (
        np.asarray(encoding, np.float64)
        @ np.asarray(run.model.item_table(run.model.fresh()[0]), np.float64).T
    )
    logits = logits[..., 1:]
    nll = (
        np.log(np.exp(logits).sum(-1))
        - np.take_along_axis(logits, np.maximum(batch.targets - 1, 0)[..., None], -1)[..., 0]
    )
    expected = (nll * batch.weights).sum() / batch.weights.sum()
    assert metrics["loss"] == pytest.approx(expected, rel=1e-5)
    assert metrics["targets"] == batch.weights.sum()
    assert metrics["events"] == (batch.events.items > 0).sum()

    # Along the gradient the loss falls by |gradient|² per unit of step, to first order.
    small = jax.tree.map(
        lambda new, old: old + 1e-3 * (new - old), after.params, run.model.fresh()[0]
    )
    _, again = step.update(dataclasses.replace(step.initial_state(), params=small), batch)
    slope = (float(metrics["loss"]) - float(again["loss"])) / 1e-3
    assert slope == pytest.approx(float(metrics["gradient_norm"]) ** 2, rel=2e-2)


def test_an_accelerator_draws_its_own_bits_alone(experiment, make_run, monkeypatch):
    """Steps there repeat as well; over several devices, numbers are those of one."""
    run = make_run(experiment, model={"dropout": 0.5})
    state, batch = run.step.initial_state(), run.batches[0]

    def program(mesh=None):
        model = dataclasses.replace(run.model, mesh=mesh)
        step = dataclasses.replace(run.step, model=model).step
        return step, str(jax.make_jaxpr(step)(state, batch))

    one_device = jax.make_mesh((1, 1, 1), (DATA, SEQUENCE, MODEL), axis_types=(AxisType.Auto,) * 3)
    assert "rbg" not in program()[1]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "rbg" not in program(one_device)[1]
    step, text = program()
    assert "rbg" in text
    step = jax.jit(step)
    (after, _), (again, _) = step(state, batch), step(state, batch)
    for one, other in zip(leaves(after), leaves(again), strict=True):
        np.testing.assert_array_equal(one, other)
    later, _ = step(dataclasses.replace(state, step=state.step + 1), batch)
    assert any(
        (one != other).any() for one, other in zip(leaves(after), leaves(later), strict=True)
    )


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulation_equals_the_whole_batch(experiment, make_run, parts):
    """Rows hold unlike numbers of targets, so parts must be weighted by target, not averaged."""
    no_dropout = {"dropout": 0.0, "drop_path": 0.0}
    whole = make_run(experiment, model=no_dropout, data={"plan": "windows"})
    split = make_run(
        experiment,
        model=no_dropout,
        data={"plan": "windows"},
        training={"accumulation_steps": parts},
    )
    batch = whole.batches[0]
    assert len(np.unique(batch.weights.sum(1))) > 1
    one, one_metrics = whole.step.update(whole.step.initial_state(), batch)
    many, many_metrics = split.step.update(split.step.initial_state(), batch)
    for name in ("loss", "gradient_norm", "update_norm", "targets", "events"):
        np.testing.assert_allclose(many_metrics[name], one_metrics[name], rtol=1e-5)
    for first, second in zip(leaves(one.params), leaves(many.params), strict=True):
        np.testing.assert_allclose(second, first, atol=2e-5)


def test_prefixes_train_a_causal_model_on_the_gradient_of_windows(experiment, make_run):
    """Where no history is longer than a row each target has the same context under both plans."""
    model = {"dropout": 0.0, "drop_path": 0.0, "denominator_events": 12}
    one_batch = {"length": 20, "batch_size": 512}
    windows = make_run(experiment, model=model, data=one_batch | {"plan": "windows"})
    prefixes = make_run(experiment, model=model, data=one_batch | {"plan": "prefixes"})
    assert windows.batches.steps_per_epoch == prefixes.batches.steps_per_epoch == 1
    assert prefixes.batches.rows_per_epoch > 5 * windows.batches.rows_per_epoch
    one, one_metrics = windows.step.update(windows.step.initial_state(), windows.batches[0])
    many, many_metrics = prefixes.step.update(prefixes.step.initial_state(), prefixes.batches[0])
    for name in ("loss", "gradient_norm", "update_norm", "targets"):
        np.testing.assert_allclose(many_metrics[name], one_metrics[name], rtol=1e-5)
    for first, second in zip(leaves(one.params), leaves(many.params), strict=True):
        np.testing.assert_allclose(second, first, atol=2e-5)


def test_non_finite_gradient_changes_nothing_and_halts(experiment, make_run):
    run = make_run(experiment)
    state, _ = run.step.update(run.step.initial_state(), run.batches[0])
    before = jax.tree.map(np.asarray, state)
    poisoned = dataclasses.replace(
        run.batches[1], weights=np.full_like(run.batches[1].weights, np.nan)
    )
    state, metrics = run.step.update(state, poisoned)
    assert not np.isfinite(metrics["loss"])
    assert bool(state.halted) and int(state.step) == 1
    # A good batch afterwards does not wake it up: the loop has yet to look.
    state, _ = run.step.update(state, run.batches[2])
    assert bool(state.halted) and int(state.step) == 1
    for old, new in zip(leaves(before.params), leaves(state.params), strict=True):
        np.testing.assert_array_equal(old, new)
    for old, new in zip(leaves(before.optimizer), leaves(state.optimizer), strict=True):
        np.testing.assert_array_equal(old, new)


def test_an_update_that_is_not_finite_changes_nothing_and_halts(experiment, make_run):
    """Also where loss and gradient are finite, as with Adam's division by a root of 0."""
    run = make_run(experiment)
    step = dataclasses.replace(run.step, optimizer=optax.scale(np.inf))
    state, metrics = step.update(step.initial_state(), run.batches[0])
    assert np.isfinite(metrics["loss"]) and np.isfinite(metrics["gradient_norm"])
    assert bool(state.halted) and int(state.step) == 0
    for old, new in zip(leaves(run.model.fresh()[0]), leaves(state.params), strict=True):
        np.testing.assert_array_equal(old, new)


class TellsNothing(SequenceModel):
    """A model with a metric that is not a number."""

    def __init__(self):
        self.table = nnx.Param(jnp.ones((25, 4)) / 4)

    def encode(self, events, state, *, dropout_key):
        return Encoding(self.table[...][events.items], metrics={"share": jnp.float32(jnp.nan)})

    def item_table(self):
        return self.table[...]


def test_a_metric_that_is_not_finite_halts_nothing(experiment, make_run):
    run = make_run(experiment)
    graphdef, *variables = split_model(TellsNothing())
    model = FunctionalModel(graphdef, tuple(variables), None, TellsNothing)
    step = dataclasses.replace(run.step, model=model, optimizer=optax.sgd(1.0))
    state, metrics = step.update(step.initial_state(), run.batches[0])
    assert np.isnan(metrics["share"]) and np.isfinite(metrics["loss"])
    assert not state.halted and state.step == 1


def test_dropout_is_a_function_of_seed_and_step(experiment, make_run):
    run, other = make_run(experiment), make_run(experiment, training={"seed": 1})
    batch = run.batches[0]
    first = run.step.update(run.step.initial_state(), batch)[1]["loss"]
    assert first == run.step.update(run.step.initial_state(), batch)[1]["loss"]
    later = dataclasses.replace(run.step.initial_state(), step=jnp.int32(5))
    assert first != run.step.update(later, batch)[1]["loss"]
    reseeded = dataclasses.replace(
        other.step.initial_state(), params=run.step.initial_state().params
    )
    assert first != other.step.update(reseeded, batch)[1]["loss"]


def test_training_learns_the_ring(experiment, make_run):
    """Four fifths of the steps go one item on: a model that learned this has a loss near 1."""
    run = make_run(experiment, optimizer={"learning_rate": 1e-2}, model={"dropout": 0.0})
    state = run.step.initial_state()
    for index in range(60):
        state, metrics = run.step.update(state, run.batches[index])
    assert metrics["loss"] < 1.6 < np.log(24)


def test_updates_in_a_row_are_the_compiled_steps_and_their_state_can_be_read_between(
    experiment, make_run
):
    run = make_run(experiment)
    state, runner = run.step.initial_state(), StepRunner(run.step, run.step.initial_state())
    for index in range(2):
        state, expected = run.step.update(state, run.batches[index])
        metrics = runner.step(run.batches[index])
        assert metrics.keys() == expected.keys() and metrics["loss"] == expected["loss"]
        between = runner.state
        assert jax.tree.structure(between) == jax.tree.structure(state)
        for one, other in zip(leaves(between), leaves(state), strict=True):
            np.testing.assert_array_equal(one, other)
