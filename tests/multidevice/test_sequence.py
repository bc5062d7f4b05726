"""Rows whose slots are split over devices train and rank as rows on one device."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from linseqrec.config import EvaluationConfig, Experiment, TrainingConfig
from linseqrec.config_fields import ConfigError
from linseqrec.data.source import DataConfig
from linseqrec.models.gated_deltanet import GatedDeltaNetConfig
from linseqrec.models.sasrec import SASRecConfig
from linseqrec.sharding import MeshConfig, MeshError, make_mesh, parameter_path
from linseqrec.training.loss import LossConfig
from linseqrec.training.run import Run
from tests.training.conftest import source  # noqa: F401  a fixture

# Rows of 32 slots hold several histories each, which go on across devices and end within them.
EXPERIMENT = Experiment(
    model=GatedDeltaNetConfig(
        width=8, num_layers=1, key_width=4, value_width=4, chunk_size=4, dropout=0.1
    ),
    data=DataConfig(plan="packed", length=32, batch_size=4),
    training=TrainingConfig(num_epochs=4),
    evaluation=EvaluationConfig(filter_seen=("all",), batch_size=14),
)
STEPS = 3


def trained(experiment, source, mesh):  # noqa: F811
    run = Run.of(experiment, source, make_mesh(mesh))
    state, losses = run.step.initial_state(), []
    for step in range(STEPS):
        state, metrics = run.step.update(state, run.step.place(run.batches[step]))
        losses.append([float(metrics[name]) for name in ("loss", "gradient_norm")])
    return run, state, losses


@pytest.fixture(scope="module")
def alone(source):  # noqa: F811
    return trained(EXPERIMENT, source, MeshConfig(1))


def first_moments(run, state):
    """The gradients' running means by parameter, without the mesh's padding."""
    leaves = jax.tree_util.tree_leaves_with_path(state.optimizer)
    named = {parameter_path(path): np.asarray(leaf) for path, leaf in leaves}
    items = run.source.dataset.num_items + 1
    return {
        name: leaf[:items] if name.endswith("table") else leaf
        for name, leaf in named.items()
        if "/mu/" in name
    }


@pytest.mark.parametrize(
    "mesh", [MeshConfig(2, sequence=2), MeshConfig(1, sequence=2, model=2)], ids=str
)
def test_a_split_of_the_slots_changes_no_gradient_and_no_rank(alone, source, mesh):  # noqa: F811
    one, state_of_one, expected = alone
    run, state, losses = trained(EXPERIMENT, source, mesh)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    wanted = first_moments(one, state_of_one)
    assert "0/mu/blocks/0/mixer/convolution/weight" in wanted
    for name, moment in first_moments(run, state).items():
        scale = np.abs(wanted[name]).max()
        np.testing.assert_allclose(moment, wanted[name], atol=1e-4 * scale, err_msg=name)
    before = one.evaluate(state_of_one.params, "validation")
    after = run.evaluate(state.params, "validation")
    np.testing.assert_array_equal(after.ranks["all"], before.ranks["all"])


def test_parts_of_a_batch_single_targets_and_drawn_items(source):  # noqa: F811
    single = dataclasses.replace(
        EXPERIMENT,
        data=dataclasses.replace(EXPERIMENT.data, plan="prefixes"),
        training=dataclasses.replace(EXPERIMENT.training, accumulation_steps=2),
    )
    drawn = dataclasses.replace(EXPERIMENT, loss=LossConfig(kind="sampled", negatives=6))
    for changed in (single, drawn):
        _, _, expected = trained(changed, source, MeshConfig(1))
        _, _, losses = trained(changed, source, MeshConfig(2, sequence=2))
        np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_no_row_is_gathered(source):  # noqa: F811
    run = Run.of(EXPERIMENT, source, make_mesh(MeshConfig(1, sequence=4)))
    state = run.step.initial_state()
    batch = run.step.place(run.batches[0])
    text = run.step.update.lower(state, batch).compile().as_text()

    def sent(operation):
        found = re.findall(rf"= \(?(\w+)\[([\d,]*)\][^=]* {operation}\(", text)
        return {tuple(map(int, shape.split(","))) for dtype, shape in found if dtype == "f32"}

    # Each device's transition [B, H, K, V] of the memory, and the convolution's last three slots.
    assert sent("all-gather") == {(4, 4, 2, 4, 4)}
    assert sent("collective-permute") == {(4, 3, 24)}
    assert not sent("all-to-all")


def test_what_cannot_be_split_is_refused(source):  # noqa: F811
    mesh = make_mesh(MeshConfig(1, sequence=4))
    with pytest.raises(ConfigError, match="mesh.sequence is 4, and SASRecConfig does not say"):
        Run.of(dataclasses.replace(EXPERIMENT, model=SASRecConfig()), source, mesh)
    with pytest.raises(ConfigError, match="mesh.sequence is 4, and own_items reads whole rows"):
        Run.of(dataclasses.replace(EXPERIMENT, own_items=True), source, mesh)
    odd = dataclasses.replace(EXPERIMENT.data, length=30)
    with pytest.raises(MeshError, match="does not divide rows of 30 slots; .*data.length=32"):
        Run.of(dataclasses.replace(EXPERIMENT, data=odd), source, mesh)
