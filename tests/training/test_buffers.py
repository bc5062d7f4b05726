"""Buffers: variables of a model that no gradient moves, here a running mean."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from linseqrec.layers.standard import ItemEmbedding
from linseqrec.models.base import Encoding, ModelConfig, SequenceModel
from linseqrec.models.weights import load_parameters, parameter_arrays
from linseqrec.training.budget import measure
from linseqrec.training.checkpoint import Checkpoints
from linseqrec.training.loop import train
from linseqrec.training.model import build_model
from linseqrec.training.run import Run
from linseqrec.training.step import StepRunner


@dataclasses.dataclass(frozen=True)
class CenteredConfig(ModelConfig):
    """Builds `Centered`."""

    def build(self, num_items, *, rngs, request_time=False):
        return Centered(num_items, rngs=rngs)


class Centered(SequenceModel):
    """Item vectors less their running mean over events."""

    def __init__(self, num_items, *, rngs):
        self.embedding = ItemEmbedding(num_items, 4, dtype=jnp.float32, rngs=rngs)
        self.mean = nnx.BatchStat(jnp.zeros(4))
        self.shift = nnx.Param(jnp.full(4, 0.0))

    def encode(self, events, state, *, dropout_key):
        x, real = self.embedding(events.items), events.items[..., None] > 0
        counts = {"sum": (x * real).sum((0, 1)), "events": real.sum()}
        return Encoding(x - self.mean[...] + self.shift[...], counts=counts)

    def after_step(self, events, counts, key):
        batch_mean = counts["sum"] / jnp.maximum(counts["events"], 1)
        self.mean[...] = 0.5 * self.mean[...] + 0.5 * batch_mean


@pytest.fixture
def centered_run(experiment, source):
    """A function that makes a run of `Centered` with gradient accumulation over some parts."""

    def make(parts=1):
        training = dataclasses.replace(experiment.training, accumulation_steps=parts)
        return Run.of(
            dataclasses.replace(experiment, model=CenteredConfig(), training=training), source
        )

    return make


def test_a_budget_of_time_is_measured_with_the_buffers(centered_run):
    assert measure(centered_run(), seconds=1.0).validation > 0


@pytest.mark.parametrize("parts", [1, 4])
def test_a_running_mean_is_trained(parts, centered_run):
    run = centered_run(parts)
    state, expected = run.step.initial_state(), np.zeros(4)
    for index in range(3):
        batch = run.batches[index]
        items = batch.events.items[batch.events.items > 0]
        batch_mean = np.asarray(run.model.item_table(state.variables))[items].mean(0)
        state, _ = run.step.update(state, batch)
        expected = 0.5 * expected + 0.5 * batch_mean
        np.testing.assert_allclose(state.buffers["mean"][...], expected, rtol=1e-5)


def test_a_model_that_writes_while_it_encodes_is_refused(centered_run, monkeypatch):
    """As `nnx.BatchNorm` and `nnx.Dropout` do: a step would drop what they write."""
    run, encode = centered_run(), Centered.encode

    def counting(model, events, state, *, dropout_key):
        model.mean[...] += 1
        return encode(model, events, state, dropout_key=dropout_key)

    monkeypatch.setattr(Centered, "encode", counting)
    with pytest.raises(ValueError, match="Centered.encode wrote to mean, which a step drops"):
        run.step.update(run.step.initial_state(), run.batches[0])


def test_a_step_is_compiled_once(centered_run):
    """Also where fresh variables are weakly typed, as those of `jnp.full(4, 0.0)` are."""
    run = centered_run()
    runner = StepRunner(run.step, run.step.initial_state())
    for index in range(3):
        runner.step(run.batches[index])
    assert run.step.update_arrays._cache_size() == 1


def test_the_optimizer_has_no_moments_of_a_buffer(centered_run):
    state = centered_run().step.initial_state()
    for moment in ("mu", "nu"):
        moments = optax.tree.get(state.optimizer, moment)
        assert jax.tree.structure(moments) == jax.tree.structure(state.params)
    assert set(state.params) == {"embedding", "shift"}
    assert set(state.buffers) == {"mean"}


def test_a_run_resumes_and_is_evaluated_with_its_buffers(centered_run, tmp_path):
    run = centered_run()
    best = train(run, tmp_path)
    step = int(best.step)
    with Checkpoints(tmp_path / "checkpoints", read_only=True) as checkpoints:
        variables = checkpoints.restore_variables(step, run.model, run.experiment.optimizer)
        last, _ = checkpoints.restore_latest(run.step.initial_state())
    assert np.abs(np.asarray(variables["mean"][...])).min() > 0
    np.testing.assert_array_equal(variables["mean"][...], best.buffers["mean"][...])
    assert jax.tree.structure(last) == jax.tree.structure(best)
    ranks = run.evaluate(variables, "validation").ranks["none"]
    np.testing.assert_array_equal(run.evaluate(best.variables, "validation").ranks["none"], ranks)
    # The metrics depend on the buffer, so an evaluation without it would differ.
    moved = nnx.merge_state(variables, nnx.State({"mean": nnx.BatchStat(jnp.full(4, 9.0))}))
    assert (run.evaluate(moved, "validation").ranks["none"] != ranks).any()


def test_weights_by_name_hold_the_buffers(centered_run):
    run = centered_run()
    state, _ = run.step.update(run.step.initial_state(), run.batches[0])
    arrays = parameter_arrays(run.model.merge(state.variables))
    other = build_model(run.experiment, 24)
    load_parameters(other, arrays)
    np.testing.assert_array_equal(other.mean[...], state.buffers["mean"][...])
