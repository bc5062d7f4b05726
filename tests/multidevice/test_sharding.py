"""A run split over devices is the run on one: losses, ranks, checkpoints; its table stays split."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from linseqrec.config import EvaluationConfig, Experiment, TrainingConfig
from linseqrec.data.source import DataConfig
from linseqrec.models.sasrec import SASRecConfig
from linseqrec.sharding import MeshConfig, MeshError, make_mesh
from linseqrec.training.checkpoint import CheckpointError, Checkpoints, Progress
from linseqrec.training.loss import LossConfig
from linseqrec.training.run import Run
from linseqrec.training.step import StepRunner
from tests.training.conftest import source  # noqa: F401  a fixture

# 24 items and the padding row: 25 rows divide over neither 2 nor 4 devices.
EXPERIMENT = Experiment(
    model=SASRecConfig(width=8, num_layers=1),
    data=DataConfig(length=16, batch_size=8),
    training=TrainingConfig(num_epochs=4),
    evaluation=EvaluationConfig(filter_seen=("none", "all"), batch_size=14),
)
ONE = MeshConfig(1, 1)
MESHES = [MeshConfig(2, 1), MeshConfig(1, 2), MeshConfig(2, 2), MeshConfig(1, 4)]
STEPS = 4


@pytest.fixture(scope="module")
def trained(source):  # noqa: F811
    """A run after a few steps, its losses, and its ranks; by mesh and loss, once each."""
    made = {}

    def train(mesh, kind="full", parts=1):
        if (mesh, kind, parts) not in made:
            experiment = dataclasses.replace(
                EXPERIMENT,
                loss=LossConfig(kind=kind, negatives=6),
                training=dataclasses.replace(EXPERIMENT.training, accumulation_steps=parts),
            )
            run = Run.of(experiment, source, make_mesh(mesh))
            runner, losses = StepRunner(run.step, run.step.initial_state()), []
            for step in range(STEPS):
                metrics = runner.step(run.step.place(run.batches[step]))
                losses.append([float(metrics[name]) for name in ("loss", "gradient_norm")])
            made[mesh, kind, parts] = run, runner.state, losses
        return made[mesh, kind, parts]

    return train


def table(run, state):
    return np.asarray(run.model.item_table(state.params))[:25]


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_a_mesh_changes_no_loss_and_no_rank(trained, mesh):
    one, state_of_one, expected = trained(ONE)
    run, state, losses = trained(mesh)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    np.testing.assert_allclose(table(run, state), table(one, state_of_one), rtol=1e-4, atol=1e-6)
    # The moments of what is padded stay zero, and so does the padding.
    assert not np.asarray(run.model.item_table(state.params))[25:].any()
    before = one.evaluate(state_of_one.params, "validation")
    after = run.evaluate(state.params, "validation")
    for name in ("none", "all"):
        np.testing.assert_array_equal(after.ranks[name], before.ranks[name])
    assert after.metrics_by_filter == before.metrics_by_filter


@pytest.mark.parametrize("kind", ["sampled", "gbce"])
def test_drawn_items_are_those_of_one_device(trained, kind):
    np.testing.assert_allclose(trained(MeshConfig(2, 2), kind)[2], trained(ONE, kind)[2], rtol=1e-5)


def test_accumulation_divides_each_part(trained):
    np.testing.assert_allclose(
        trained(MeshConfig(2, 2), parts=2)[2], trained(ONE, parts=2)[2], rtol=1e-5
    )


@pytest.mark.parametrize("kind", ["full", "sampled"])
def test_the_table_is_never_gathered(trained, kind):
    run, state, _ = trained(MeshConfig(2, 2), kind)
    batch = run.step.place(run.batches[0])
    text = run.step.update.lower(state, batch).compile().as_text()
    shapes = [shape for _, shape in re.findall(r"= \(?(\w+)\[([\d,]*)\][^=]* all-gather", text)]
    assert "13,8" in text and "26,8" not in shapes and "25,8" not in shapes, shapes
    held = state.params["embedding"]["table"][...].addressable_shards[0].data.shape
    assert held == (13, 8)


def test_a_checkpoint_fits_every_mesh(trained, source, tmp_path):  # noqa: F811
    run, state, _ = trained(MeshConfig(2, 2))
    with Checkpoints(tmp_path, shapes=run.step.shapes) as checkpoints:
        checkpoints.save(state, Progress({}))
    for mesh in (ONE, MeshConfig(1, 4)):
        other = trained(mesh)[0]
        with Checkpoints(tmp_path, read_only=True, shapes=other.step.shapes) as checkpoints:
            restored, _ = checkpoints.restore_latest(other.step.initial_state())
            variables = checkpoints.restore_variables(STEPS, other.model, EXPERIMENT.optimizer)
        np.testing.assert_array_equal(table(other, restored), table(run, state))
        assert jax.tree.structure(variables) == jax.tree.structure(restored.variables)
        assert restored.params["embedding"]["table"][...].sharding == (
            other.model.fresh()[0]["embedding"]["table"][...].sharding
        )
        following = (other.step.place(other.batches[STEPS]), run.step.place(run.batches[STEPS]))
        moments = jax.tree.map(np.asarray, restored.optimizer)
        assert len(jax.tree.leaves(moments)) == len(jax.tree.leaves(state.optimizer))
        _, metrics = other.step.update(restored, following[0])
        again = jax.tree.map(lambda x: x.copy(), state)
        _, expected = run.step.update(again, following[1])
        np.testing.assert_allclose(float(metrics["loss"]), float(expected["loss"]), rtol=1e-5)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        with pytest.raises(CheckpointError, match=r"embedding/table: \(25, 8\) saved, \(26, 8\)"):
            checkpoints.restore(STEPS, run.step.initial_state())


def test_item_rows_that_wait_are_brought_up_to_date_on_every_mesh(trained, tmp_path):
    run, state, _ = trained(MeshConfig(2, 2), "sampled")
    behind = jax.device_put(jnp.arange(26) % STEPS, state.row_steps.sharding)
    waiting = dataclasses.replace(state, row_steps=behind)
    with Checkpoints(tmp_path / "rows", shapes=run.step.shapes) as checkpoints:
        checkpoints.save(waiting, Progress({}))
    with Checkpoints(tmp_path / "whole", shapes=run.step.shapes) as checkpoints:
        checkpoints.save(dataclasses.replace(state, row_steps=None), Progress({}))
    tables = []
    for mesh in (ONE, MeshConfig(2, 2), MeshConfig(1, 4)):
        other = trained(mesh, "sampled")[0]
        opened = {"read_only": True, "shapes": other.step.shapes}
        with Checkpoints(tmp_path / "rows", **opened) as checkpoints:
            variables = checkpoints.restore_variables(STEPS, other.model, EXPERIMENT.optimizer)
        tables.append(np.asarray(other.model.item_table(variables))[:25])
        with Checkpoints(tmp_path / "whole", **opened) as checkpoints:
            restored, _ = checkpoints.restore_latest(other.step.initial_state())
        assert (np.asarray(restored.row_steps) == STEPS).all()
        assert restored.row_steps.sharding == other.step.initial_state().row_steps.sharding
        other.step.update(restored, other.step.place(other.batches[STEPS]))
    assert np.abs(tables[0] - table(run, state)).max() > 1e-4
    for own in tables[1:]:
        np.testing.assert_allclose(own, tables[0], rtol=1e-5, atol=1e-7)


def test_a_mesh_that_does_not_fit_is_refused(source):  # noqa: F811
    with pytest.raises(MeshError, match="mesh.data=3, mesh.sequence=1, mesh.model=2 .* 4 devices"):
        make_mesh(MeshConfig(3, 2))
    with pytest.raises(MeshError, match="mesh.data=-1, mesh.sequence=1, mesh.model=3 .* 4 devices"):
        make_mesh(MeshConfig(-1, 3))
    odd = dataclasses.replace(EXPERIMENT, data=DataConfig(length=16, batch_size=6))
    with pytest.raises(MeshError, match="6: it must be a multiple of 4 .*batch_size=8, or keep"):
        Run.of(odd, source, make_mesh(MeshConfig()))
    with pytest.raises(MeshError, match="--config.mesh.data=2 --config.mesh.model=2$"):
        Run.of(odd, source, make_mesh(MeshConfig()))
    # What it says to do instead, each.
    Run.of(odd, source, make_mesh(MeshConfig(data=2, model=2)))
    rows = dataclasses.replace(odd.data, batch_size=8)
    Run.of(dataclasses.replace(odd, data=rows), source, make_mesh(MeshConfig()))
