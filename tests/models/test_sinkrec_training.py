"""SinkRec in training: its codes are seeded, counted, shared and kept with the run."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from linseqrec.models.weights import parameter_arrays
from linseqrec.training import loop
from linseqrec.training.checkpoint import Checkpoints
from linseqrec.training.saved_run import read_metrics
from tests.models.reference import run
from tests.models.small_sinkrec import SMALL, by_name, out_of_use, ragged, small_run
from tests.ops.closeness import assert_close


def test_a_step_seeds_the_codebooks_and_counts_their_use():
    made = small_run()
    before = by_name(made, nnx.merge_state(*made.model.fresh()))
    state, metrics = made.step.update(made.step.initial_state(), made.batches[0])
    after = by_name(made, state.variables)
    assert (after["memory/codebooks"] != before["memory/codebooks"]).all()
    np.testing.assert_array_equal(after["memory/usage"], 0.25)
    assert {"loss/vq", "loss/reconstruction", "perplexity/4x1/0", "quantization_error/4x1"} <= set(
        metrics
    )
    state, _ = made.step.update(state, made.batches[1])
    again = by_name(made, state.variables)
    # Alive: they move by a step of the optimizer, not to another event.
    moved = np.abs(again["memory/codebooks"] - after["memory/codebooks"])
    assert moved.max() < 2e-3
    assert (again["memory/usage"] != 0.25).all()


def test_accumulation_takes_means_over_events_and_adds_counts_up():
    """By what the parts give before the update; they hold unlike numbers of events."""
    made = small_run(parts=2)
    state, _ = made.step.update(made.step.initial_state(), made.batches[0])
    params = jax.tree.map(jnp.copy, state.variables)
    batch = made.batches[1]
    model = made.model.merge(params)
    halves = [
        run(model, jax.tree.map(lambda x, half=half: x[half], batch.events))
        for half in (slice(0, 4), slice(4, 8))
    ]
    counts = np.sum([half.counts for half in halves], axis=0)
    assert counts.sum() == SMALL.levels * (batch.events.items > 0).sum()
    assert halves[0].counts.sum() != halves[1].counts.sum()
    state, metrics = made.step.update(state, batch)
    shares = counts / counts.sum(-1, keepdims=True) * SMALL.codes
    usage = by_name(made, state.variables)["memory/usage"]
    assert_close(usage, 0.98 * 0.25 + 0.02 * shares, 1e-6)
    events = [(batch.events.items[half] > 0).sum() for half in (slice(0, 4), slice(4, 8))]
    for name in halves[0].losses:
        mean = np.average([half.losses[name] for half in halves], weights=events)
        assert_close(metrics[f"loss/{name}"], mean, 1e-5)
    for name in halves[0].metrics:
        mean = np.average([half.metrics[name] for half in halves], weights=events)
        assert_close(metrics[name], mean, 1e-5)


def test_a_part_of_padding_does_not_thin_the_losses_of_the_others():
    whole, split = small_run(), small_run(parts=2)
    batch = whole.batches[0]
    padding = np.arange(len(batch.weights)) >= 4  # All of the second part.
    batch = jax.tree.map(lambda x: np.where(padding[:, None], 0, x), batch)
    _, one = whole.step.update(whole.step.initial_state(), batch)
    _, many = split.step.update(split.step.initial_state(), batch)
    for name in ("loss", "loss/vq", "loss/reconstruction"):
        assert_close(many[name], one[name], 1e-5)


def test_frozen_codebooks_are_never_seeded():
    model = dataclasses.replace(SMALL, loops=1, codebook="frozen").build(24, rngs=nnx.Rngs(0))
    before = parameter_arrays(model)
    model.after_step(ragged(), run(model, ragged()).counts, jax.random.key(0))
    for name, array in parameter_arrays(model).items():
        np.testing.assert_array_equal(array, before[name])


def test_a_step_that_is_not_finite_leaves_the_codes_alone():
    made = small_run()
    state, _ = made.step.update(made.step.initial_state(), made.batches[0])
    before = by_name(made, state.variables)
    bad = dataclasses.replace(made.batches[1], weights=made.batches[1].weights * np.nan)
    state, _ = made.step.update(state, bad)
    assert bool(state.halted)
    for name, array in by_name(made, state.variables).items():
        np.testing.assert_array_equal(array, before[name])


def test_a_run_resumes_where_it_was_and_logs_the_perplexities(tmp_path):
    """Codebooks, their usage and the draws of new codes among it."""
    made = small_run()
    whole = loop.train(made, tmp_path / "run")
    with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        restored = checkpoints.restore(checkpoints.resolve("latest"), made.step.initial_state())
    first, _ = made.step.update(out_of_use(jax.tree.map(jnp.copy, whole)), made.batches[0])
    second, _ = made.step.update(out_of_use(restored), made.batches[0])
    moved = by_name(made, first.variables)["memory/codebooks"]
    assert np.abs(moved - by_name(made, whole.variables)["memory/codebooks"]).max() > 0.1
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(one, other)
    records = [r for r in read_metrics(tmp_path / "run") if "train/perplexity/4x1/1" in r]
    assert records and all(1 <= r["train/perplexity/4x1/1"] <= 8 for r in records)
    assert all(math.isfinite(r["train/loss/vq"]) for r in records)
