"""Request times: read where they are known, and invisible where they are hidden."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from linseqrec.config_fields import ConfigError
from linseqrec.data.dataset import Dataset
from linseqrec.data.source import Source
from linseqrec.data.splits import leave_one_out
from linseqrec.models.gated_deltanet import GatedDeltaNetConfig
from linseqrec.models.hytrec import HyTRecConfig
from linseqrec.models.recgrela import RecGRELAConfig
from linseqrec.models.sasrec import SASRecConfig
from linseqrec.models.sinkrec import SinkRecConfig
from linseqrec.training.run import Run

# Runs on several logs share a model.
pytestmark = pytest.mark.usefixtures("steps")

MODELS = {
    "gated deltanet": GatedDeltaNetConfig(
        width=16, heads=2, num_layers=1, key_width=8, value_width=8
    ),
    "hytrec": HyTRecConfig(width=16, short_events=3, short_layers=1, num_layers=1, ratio="1:0"),
    "hytrec delayed": HyTRecConfig(
        width=16, short_events=3, short_layers=1, num_layers=1, ratio="1:0", question="delayed"
    ),
    "recgrela": RecGRELAConfig(width=16, heads=2, num_layers=1),
    "sasrec": SASRecConfig(width=16, num_layers=1),
    # One window and one pass: compiling a step of more takes five times as long.
    "sinkrec": SinkRecConfig(
        width=16, levels=2, codes=8, attention_window=8, dilations=(1,), loops=1
    ),
}


def make(experiment, source, model, request_time):
    data = dataclasses.replace(experiment.data, request_time=request_time)
    return Run.of(dataclasses.replace(experiment, model=MODELS[model], data=data), source)


def later_targets(source, split):
    """The same events, but the targets of a split and what comes after them an hour later."""
    dataset, targets = source.dataset, getattr(source.split, split)
    times = np.array(dataset.timestamps)
    for user, position in zip(targets.users, targets.positions, strict=True):
        times[position : dataset.offsets[user + 1]] += 3_600
    dataset = Dataset.from_arrays(dataset.items, times, dataset.offsets, dataset.num_items)
    return Source(dataset, leave_one_out(dataset), None)


def wide(params):
    """At the initial scale, where the maps of request times are 0, a leak would not show."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda p: p + 0.2 * rng.normal(size=p.shape).astype(p.dtype), params)


def ranks(run, split):
    return run.evaluate(wide(nnx.merge_state(*run.model.fresh())), split).ranks["none"]


@pytest.mark.parametrize("model", MODELS)
def test_hidden_times_of_targets_change_nothing(experiment, source, model):
    """Batches, encodings and ranks are the same to the bit."""
    changed = later_targets(source, "validation")
    one, other = (make(experiment, each, model, "hidden") for each in (source, changed))
    for step in range(one.batches.steps_per_epoch):
        first, second = one.batches[step], other.batches[step]
        assert first.events.request_times is None
        assert jax.tree.structure(first) == jax.tree.structure(second)
        jax.tree.map(np.testing.assert_array_equal, first, second)
    np.testing.assert_array_equal(ranks(one, "validation"), ranks(other, "validation"))
    other = make(experiment, later_targets(source, "test"), model, "hidden")
    np.testing.assert_array_equal(ranks(one, "test"), ranks(other, "test"))


@pytest.mark.parametrize("model", MODELS)
def test_a_model_that_knows_starts_as_one_that_is_told_nothing(experiment, source, model):
    hidden, known = (make(experiment, source, model, each) for each in ("hidden", "known"))
    # The parameters of request times aside, the two start the same.
    start = dict(jax.tree_util.tree_leaves_with_path(known.model.fresh()[0]))
    for path, leaf in jax.tree_util.tree_leaves_with_path(hidden.model.fresh()[0]):
        np.testing.assert_array_equal(leaf, start[path])
    events = known.batches[0].events
    bare = dataclasses.replace(events, request_times=None)
    # At once after each event: a memory that fades does not fade until the request.
    at_once = dataclasses.replace(events, request_times=events.timestamps)
    np.testing.assert_allclose(
        known.model.encode(nnx.merge_state(*known.model.fresh()), at_once),
        hidden.model.encode(nnx.merge_state(*hidden.model.fresh()), bare),
        atol=1e-6,
    )


@pytest.mark.parametrize("model", MODELS)
def test_known_times_of_targets_are_read(experiment, source, model):
    one = make(experiment, source, model, "known")
    other = make(experiment, later_targets(source, "test"), model, "known")
    assert (ranks(one, "test") != ranks(other, "test")).mean() > 0.3


@pytest.mark.parametrize("model", ["recgrela", "hytrec"])
def test_the_maps_of_request_times_learn_in_the_first_step(experiment, source, model):
    """One layer holds them in every model. HyTRec also asks its long branch by them."""
    run = make(experiment, source, model, "known")
    start = run.model.fresh()[0]
    state, _ = run.step.update(run.step.initial_state(), run.batches[0])
    moved = {
        jax.tree_util.keystr(path)
        for (path, old), new in zip(
            jax.tree_util.tree_leaves_with_path(start), jax.tree.leaves(state.params), strict=True
        )
        if (new != old).any()
    }
    for part in ("input", "output"):
        assert any("request_time" in name and part in name for name in moved), part


def test_a_log_without_times_has_no_request_times(experiment):
    dataset = Dataset.from_arrays([1, 2, 3, 4] * 2, [0, 1, 2, 3] * 2, [0, 4, 8], order_only=True)
    source = Source(dataset, leave_one_out(dataset), None)
    make(experiment, source, "recgrela", "hidden")
    with pytest.raises(ConfigError, match="data.request_time is 'known', .* it must be 'hidden'"):
        make(experiment, source, "recgrela", "known")


@dataclasses.dataclass(frozen=True)
class Deaf(RecGRELAConfig):
    """A model of a user's own that is not told request times."""

    reads_request_times = False

    def build(self, num_items, *, rngs):
        return super().build(num_items, rngs=rngs)


def test_a_model_that_cannot_be_told_request_times_is_refused_where_they_are_known(
    experiment, source, monkeypatch
):
    monkeypatch.setitem(MODELS, "deaf", Deaf(width=16, heads=2, num_layers=1))
    make(experiment, source, "deaf", "hidden")
    with pytest.raises(ConfigError, match="Deaf has reads_request_times=False.*'hidden'"):
        make(experiment, source, "deaf", "known")


def test_events_without_request_times_are_refused_by_a_model_that_reads_them(experiment, source):
    known = make(experiment, source, "recgrela", "known")
    bare = dataclasses.replace(known.batches[0].events, request_times=None)
    with pytest.raises(ValueError, match="the events carry none: set request_times"):
        known.model.encode(nnx.merge_state(*known.model.fresh()), bare)
