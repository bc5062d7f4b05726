"""A step that updates only the item rows it touches trains as one that updates all of them."""

import collections
import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from linseqrec.config import TrainingConfig
from linseqrec.data.dataset import Dataset
from linseqrec.data.source import DataConfig, Source
from linseqrec.data.splits import leave_one_out
from linseqrec.layers.standard import ItemEmbedding, ItemRows
from linseqrec.models.base import Encoding, ModelConfig, SequenceModel
from linseqrec.models.gated_deltanet import GatedDeltaNetConfig
from linseqrec.training import item_rows
from linseqrec.training.checkpoint import CheckpointError, Checkpoints, Progress
from linseqrec.training.loop import train
from linseqrec.training.loss import LossConfig
from linseqrec.training.optimizer import OptimizerConfig, learning_rate, make_optimizer
from linseqrec.training.preemption import Preempted, Preemption
from linseqrec.training.run import Run
from linseqrec.training.step import StepRunner, init_state

ROWS, WIDTH, STEPS = 60, 3, 400


def make_state(optimizer, *, by_rows):
    draw = np.random.default_rng(0)
    table = jnp.asarray(draw.normal(size=(ROWS, WIDTH)), jnp.float32)
    params = nnx.State({"embedding": {"table": ItemRows(table)}, "bias": nnx.Param(table[0])})
    return init_state(params, nnx.State({}), optimizer, by_rows=by_rows)


def table(tree):
    return np.asarray(tree["embedding"]["table"][...])


def gradients():
    """For each step some rows and their gradients; most rows wait for up to hundreds of steps."""
    draw = np.random.default_rng(1)
    likely = np.arange(1, ROWS + 1) ** -1.5
    for _ in range(STEPS):
        rows = np.unique(draw.choice(ROWS, 5, p=likely / likely.sum()))
        yield rows, draw.normal(size=(len(rows), WIDTH)) * 10.0 ** draw.uniform(-3, 0)


@pytest.mark.parametrize(
    "config",
    [
        OptimizerConfig(learning_rate=1e-2),
        OptimizerConfig(
            learning_rate=1e-2, schedule="cosine", warmup_steps=50, clip_norm=0.1, weight_decay=0.1
        ),
        OptimizerConfig(learning_rate=1e-2, b1=0.0, b2=0.9),
        OptimizerConfig(learning_rate=1e-2, b1=0.95, b2=0.99),
    ],
    ids=["constant", "warm-up, cosine, clipping", "no momentum", "long momentum"],
)
def test_rows_that_wait_end_as_in_dense_adam(config):
    rate = learning_rate(config, STEPS)
    optimizer, catch_up = make_optimizer(config, rate), item_rows.CatchUpRule.of(config, rate)
    dense, lazy = make_state(optimizer, by_rows=False), make_state(optimizer, by_rows=True)

    @jax.jit
    def update(state, table, bias):
        grads = nnx.State({"embedding": {"table": ItemRows(table)}, "bias": nnx.Param(bias)})
        updates, after = optimizer.update(grads, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        return dataclasses.replace(state, step=state.step + 1, params=params, optimizer=after)

    @jax.jit
    def update_rows(state, rows, gradient, bias):
        own = update(catch_up.read_rows(state, rows), gradient, bias)
        return item_rows.write_rows(state, own, rows)

    for rows, gradient in gradients():
        whole = np.zeros((ROWS, WIDTH), np.float32)
        whole[rows] = gradient
        bias = gradient[0].astype(np.float32)
        dense = update(dense, whole, bias)
        # Ids repeat and stand in any order; what is left of U is filled up.
        touched = item_rows.rows_of_ids([np.array([*rows[::-1], *rows], np.int32)], ROWS)
        own = np.concatenate([whole, np.zeros((1, WIDTH), np.float32)])[np.asarray(touched)]
        lazy = update_rows(lazy, touched, own, bias)

    behind = np.asarray(lazy.row_steps)
    assert (behind < STEPS - 50).sum() > ROWS / 4 and (behind == STEPS).any()
    lazy = jax.jit(catch_up.catch_up_all_rows)(lazy)
    assert (np.asarray(lazy.row_steps) == STEPS).all()
    np.testing.assert_allclose(lazy.params["bias"][...], dense.params["bias"][...], rtol=1e-6)
    for name in ("mu", "nu"):
        one, other = (table(optax.tree.get(state.optimizer, name)) for state in (lazy, dense))
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-30)
    distance = table(dense.params) - table(make_state(optimizer, by_rows=False).params)
    error = table(lazy.params) - table(dense.params)
    assert np.abs(error).max() < 1e-5 * np.abs(distance).max()


@pytest.fixture(scope="module")
def sparse_source():
    """30 users who walk through 2,000 items, of whom a batch reads a tenth."""
    draw = np.random.default_rng(0)
    items = draw.integers(1, 2001, 30 * 12).astype(np.int32)
    times = np.tile(np.arange(12) * 60, 30)
    dataset = Dataset.from_arrays(items, times, np.arange(31) * 12, 2000)
    return Source(dataset, leave_one_out(dataset), None)


@pytest.fixture
def sparse_run(experiment, sparse_source):
    """A run with drawn negatives on the sparse log; the arguments change its experiment."""
    experiment = dataclasses.replace(
        experiment,
        model=GatedDeltaNetConfig(width=16, num_layers=1, dropout=0.1),
        loss=LossConfig(kind="sampled", negatives=3),
        data=DataConfig(length=12, batch_size=4),
    )
    return lambda **changes: Run.of(dataclasses.replace(experiment, **changes), sparse_source)


@pytest.mark.parametrize(
    ("loss", "parts", "own_items"),
    [
        ("sampled", 1, False),
        ("sampled", 2, False),
        ("sampled", 1, True),
        ("bce", 1, False),
        ("gbce", 2, False),
    ],
    ids=["sampled", "sampled, in two parts", "sampled, own items", "bce", "gbce, in two parts"],
)
def test_a_step_by_rows_is_the_dense_step(sparse_run, loss, parts, own_items):
    run = sparse_run(
        own_items=own_items,
        loss=LossConfig(kind=loss, negatives=3),
        training=TrainingConfig(num_epochs=10, accumulation_steps=parts),
    )
    made = run.step
    state, update = made.initial_state(), made.update
    dense_step = dataclasses.replace(made, catch_up=None)
    dense = dense_step.initial_state()
    assert state.row_steps is not None and dense.row_steps is None
    for batch in (run.batches[index] for index in range(20)):
        state, metrics = update(state, batch)
        dense, expected = dense_step.update(dense, batch)
        for name in set(expected) - {"update_norm"}:
            np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-4, err_msg=name)
    assert (np.asarray(state.row_steps) == 0).sum() > 200
    state = made.up_to_date(state)
    for one, other in zip(
        jax.tree.leaves(state.params), jax.tree.leaves(dense.params), strict=True
    ):
        # Adam makes a large difference of the rounding of a gradient that is nearly 0.
        error = np.abs(np.asarray(one) - other)
        assert np.quantile(error, 0.99) < 1e-5 and error.max() < 1e-3


def assert_equal(one, other):
    for own, expected in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(own, expected)


def test_the_variables_of_a_checkpoint_are_up_to_date(sparse_run, tmp_path, monkeypatch):
    """Of one, too, that a preemption saved while rows waited for updates."""
    run = sparse_run(optimizer=OptimizerConfig(learning_rate=0.1, schedule="cosine"))
    # As `training.max_minutes` shortens a run, and with it the schedule.
    short = dataclasses.replace(run, num_steps=20)
    preemption, apply, steps = Preemption(), StepRunner.step, []

    def request_a_stop(self, batch):
        steps.append(1)
        preemption.requested = len(steps) == 12
        return apply(self, batch)

    monkeypatch.setattr(StepRunner, "step", request_a_stop)
    with pytest.raises(Preempted):
        train(short, tmp_path, preemption=preemption)
    with Checkpoints(tmp_path / "checkpoints", read_only=True) as checkpoints:
        variables = checkpoints.restore_variables(12, run.model, run.experiment.optimizer)
        saved = checkpoints.restore(12, run.step.initial_state())
        with pytest.raises(CheckpointError, match="item rows wait for updates: set loss.kind back"):
            checkpoints.restore(12, sparse_run(loss=LossConfig()).step.initial_state())
    assert (np.asarray(saved.row_steps) < 12).any()
    waiting, expected = table(saved.params).copy(), short.step.up_to_date(saved)
    assert np.abs(waiting - table(expected.params)).max() > 0.01
    assert_equal(variables, expected.variables)


def test_a_run_whose_checkpoints_do_not_know_rows_goes_on(sparse_run, tmp_path):
    """Earlier versions updated whole tables with drawn negatives as well."""
    run = sparse_run()
    step = jnp.int32(7)
    saved = dataclasses.replace(run.step.initial_state(), step=step, row_steps=None)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(saved, Progress({}))
        checkpoints.wait()
        variables = checkpoints.restore_variables(7, run.model, run.experiment.optimizer)
        restored, _ = checkpoints.restore_latest(run.step.initial_state())
    assert_equal(variables, saved.variables)
    assert_equal(dataclasses.replace(restored, row_steps=None), saved)
    assert (np.asarray(restored.row_steps) == 7).all()
    assert run.step.update(restored, run.batches[7])[0].step == 8


@dataclasses.dataclass(frozen=True)
class TwoTablesConfig(ModelConfig):
    """Builds `TwoTables`."""

    def build(self, num_items, *, rngs, request_time=False):
        return TwoTables(num_items, rngs=rngs)


class TwoTables(SequenceModel):
    """Item vectors, and a parameter of one's own that is read by item."""

    def __init__(self, num_items, *, rngs):
        self.embedding = ItemEmbedding(num_items, 4, dtype=jnp.float32, rngs=rngs)
        self.scales = nnx.Param(jnp.arange(num_items + 1.0))

    def encode(self, events, state, *, dropout_key):
        return Encoding(self.embedding(events.items) * self.scales[...][events.items][..., None])


@pytest.mark.parametrize(
    "changes",
    [{"model": TwoTablesConfig()}, {"optimizer": OptimizerConfig(b1=0.9, b2=0.8)}],
    ids=["another array by item", "a sum that does not end"],
)
def test_whole_tables_are_updated_where_single_rows_would_be_wrong(sparse_run, changes):
    run = sparse_run(**changes)
    state, _ = run.step.update(run.step.initial_state(), run.batches[0])
    assert state.row_steps is None and int(state.step) == 1


def test_a_step_makes_no_array_of_the_size_of_the_table(experiment, sparse_source):
    """Whole tables are given, written into, and returned; nothing is computed with them."""
    experiment = dataclasses.replace(experiment, loss=LossConfig(kind="sampled", negatives=3))
    run = Run.of(experiment, sparse_source)
    text = run.step.update.lower(run.step.initial_state(), run.batches[0]).compile().as_text()
    made = re.findall(r"= f32\[2001,16\]\S* (\S+?)\(", text)
    # XLA writes the rows of a scatter one by one, each in place.
    allowed = {"parameter", "get-tuple-element", "fusion", "dynamic-update-slice", "scatter"}
    assert made and set(made) <= allowed, collections.Counter(made)
    assert "input_output_alias" in text.splitlines()[0]
