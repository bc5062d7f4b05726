"""FLOPs by the weights, against what the dense layers are in fact given."""

import contextlib
import dataclasses
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from linseqrec.models.gated_deltanet import GatedDeltaNetConfig
from linseqrec.models.hytrec import HyTRecConfig
from linseqrec.models.own_items import OwnItems
from linseqrec.models.sinkrec import SinkRecConfig
from linseqrec.training import throughput
from linseqrec.training.checkpoint import Progress
from linseqrec.training.loss import LossConfig
from linseqrec.training.throughput import (
    Meter,
    StepQueue,
    flops_per_event,
    flops_per_target,
    peak_flops,
)
from tests.models.reference import make_events, random_histories

# Slots among the keys meet their kernel in the attention, and not in a dense layer's call.
SINKREC = SinkRecConfig(width=8, heads=2, loops=3, memory_key_values=False, codes=4)
MODELS = {
    "gated deltanet": GatedDeltaNetConfig(width=8, heads=2, num_layers=2),
    "hytrec": HyTRecConfig(width=8, heads=2, num_layers=2, ratio="1:1"),
    "sinkrec": SINKREC,
    "sinkrec, blocks of their own": dataclasses.replace(SINKREC, shared=False),
}


@pytest.mark.parametrize("name", MODELS)
def test_an_event_costs_what_the_dense_layers_multiply(name, monkeypatch):
    config, products = MODELS[name], []
    call = nnx.Linear.__call__

    def counted(layer, inputs, *args, **more):
        products.append(layer.kernel.size * inputs.size // inputs.shape[-1])
        return call(layer, inputs, *args, **more)

    events = make_events([random_histories([16])], 16)
    graphdef, params, rest = nnx.split(config.build(20, rngs=nnx.Rngs(0)), nnx.Param, ...)
    monkeypatch.setattr(nnx.Linear, "__call__", counted)
    jax.eval_shape(lambda: nnx.merge(graphdef, params, rest)(events).hidden)
    assert flops_per_event(params, config) == 6 * sum(products) / 16


def test_own_items_add_no_dense_layer():
    """Blocks that events pass through three times count three times within another model, too."""
    model = SINKREC.build(20, rngs=nnx.Rngs(0))
    alone = flops_per_event(nnx.state(model, nnx.Param), SINKREC)
    assert flops_per_event(nnx.state(OwnItems(model), nnx.Param), SINKREC) == alone


@pytest.mark.parametrize(
    ("loss", "candidates"),
    [
        (LossConfig(kind="full"), 1_001),
        *((LossConfig(kind=kind, negatives=64), 65) for kind in ("sampled", "bce", "gbce")),
    ],
)
def test_a_target_costs_its_scores(loss, candidates):
    assert flops_per_target(np.zeros((1_001, 8)), loss) == 6 * 8 * candidates


DATASHEETS = {"NVIDIA H200": 989e12, "TPU v5": 459e12, "TPU v5 lite": 197e12}


@pytest.mark.parametrize("kind", DATASHEETS)
@pytest.mark.parametrize("dtype", ["bfloat16", jnp.bfloat16], ids=["text", "dtype"])
def test_the_peak_of_a_known_device_is_that_of_its_datasheet(kind, dtype, monkeypatch):
    device = types.SimpleNamespace(device_kind=kind, platform="other")
    monkeypatch.setattr(jax, "devices", lambda: [device] * 8)
    assert peak_flops(dtype) == DATASHEETS[kind]


def test_utilisation_is_that_of_the_devices_in_the_mesh(experiment, make_run, monkeypatch):
    monkeypatch.setattr(throughput, "peak_flops", lambda dtype: 1e9)
    run, shares = make_run(experiment), []
    for mesh in (None, types.SimpleNamespace(size=4)):
        model = types.SimpleNamespace(
            mesh=mesh,
            abstract=run.model.abstract,
            shapes=run.model.shapes,
            item_table=run.model.item_table,
        )
        now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: now)  # noqa: B023
        meter = Meter(experiment.model, run.step.prediction_loss.config, model, Progress({}))
        step = {name: jnp.float32(3) for name in ("events", "targets", "loss")}
        meter.count(step)
        now = 2.0
        shares.append(meter.read(step)[1]["train/model_flop_utilisation"])
    assert shares[0] == pytest.approx(4 * shares[1])


def test_the_time_of_training_has_no_gaps(experiment, make_run, monkeypatch):
    run, before = make_run(experiment), Progress({})
    meter = Meter(experiment.model, run.step.prediction_loss.config, run.model, before)
    now = time.perf_counter()
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    meter.added_to(before)
    # Steps that are saved before their metrics are logged, here twice, and an interruption.
    now += 1
    progress = meter.added_to(before)
    now += 2
    progress = meter.added_to(progress)
    with contextlib.suppress(InterruptedError), meter.paused():
        now += 100
        raise InterruptedError
    now += 4
    assert meter.added_to(progress).seconds == pytest.approx(1 + 2 + 4)


class Device:
    """A device that runs steps one after another on a clock of its own."""

    def __init__(self):
        self.now, self.busy_until = 0.0, 0.0

    def dispatch(self, seconds):
        self.busy_until = max(self.busy_until, self.now) + seconds
        return Output(self, self.busy_until)


class Output:
    def __init__(self, device, ready_at):
        self.device, self.ready_at = device, ready_at

    def block_until_ready(self):
        self.device.now = max(self.device.now, self.ready_at)
        return self


@pytest.mark.parametrize("step", [0.001, 0.01, 0.3, 0.9, 1.2, 13.0])
def test_little_work_is_dispatched_and_not_finished(step, monkeypatch):
    device = Device()
    monkeypatch.setattr(time, "perf_counter", lambda: device.now)
    queue, idle = StepQueue(), 0.0
    for number in range(200):
        device.now += 0.0001  # the host reads a batch
        idle += max(device.now - device.busy_until, 0) if number > 20 else 0
        queue.add([device.dispatch(step)])
        assert device.busy_until - device.now <= max(1.0, 8 * 0.01)
    # The device never waits for the host, unless a single step is already as much as may wait.
    assert (idle == 0) == (step < 1.0)
    # A machine that becomes slower is noticed at the next step.
    for _ in range(20):
        queue.add([device.dispatch(100 * step)])
    assert device.busy_until - device.now <= max(1.0, 0.1)
