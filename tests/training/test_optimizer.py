import jax
import numpy as np
import optax
import pytest
from flax import nnx

from linseqrec.models.fuxi_linear import FuXiLinearConfig
from linseqrec.models.gated_deltanet import GatedDeltaNetConfig
from linseqrec.models.gru4rec import GRU4RecConfig
from linseqrec.models.hstu import HSTUConfig
from linseqrec.models.hytrec import HyTRecConfig
from linseqrec.models.linrec import LinRecConfig
from linseqrec.models.lrurec import LRURecConfig
from linseqrec.models.mamba2 import Mamba2Config
from linseqrec.models.recgrela import RecGRELAConfig
from linseqrec.models.sasrec import SASRecConfig
from linseqrec.models.sinkrec import SinkRecConfig
from linseqrec.sharding import parameter_path
from linseqrec.training.optimizer import OptimizerConfig, decayed, learning_rate, make_optimizer


def test_warmup_then_cosine():
    config = OptimizerConfig(
        learning_rate=0.1, schedule="cosine", warmup_steps=10, final_fraction=0.2
    )
    rate = learning_rate(config, 110)
    halfway = 0.1 * (0.2 + 0.8 * 0.5)
    for step, expected in ((0, 0.0), (5, 0.05), (10, 0.1), (60, halfway), (110, 0.02)):
        assert float(rate(step)) == pytest.approx(expected, rel=1e-5), step


def test_the_late_decay_takes_the_last_fifth_after_the_warmup():
    config = OptimizerConfig(
        learning_rate=0.1, schedule="late_decay", warmup_steps=10, final_fraction=0.2
    )
    rate = learning_rate(config, 110)
    for step, expected in ((5, 0.05), (10, 0.1), (90, 0.1), (100, 0.06), (110, 0.02), (120, 0.02)):
        assert float(rate(step)) == pytest.approx(expected, rel=1e-5), step


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"learning_rate": -0.1}, "learning_rate is -0.1: it must be above 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan: it must be a finite number"),
        ({"epsilon": 0.0}, "epsilon is 0.0: it must be above 0"),
    ],
)
def test_settings_that_make_no_schedule_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        learning_rate(OptimizerConfig(**wrong), 10)


def test_a_warmup_that_is_longer_than_the_run_is_a_tenth_of_it():
    config = OptimizerConfig(learning_rate=0.1, warmup_steps=200)
    rate = learning_rate(config, 100)
    assert float(rate(5)) == pytest.approx(0.05) and float(rate(10)) == pytest.approx(0.1)
    # A warm-up that fits is not shortened.
    rate = learning_rate(config, 200)
    assert float(rate(100)) == pytest.approx(0.05) and float(rate(200)) == pytest.approx(0.1)


MODELS = {
    "gated_deltanet": GatedDeltaNetConfig(width=8, num_layers=1),
    "recgrela": RecGRELAConfig(width=8, num_layers=1, selector="convex", value_projection=True),
    "recgrela_lookup": RecGRELAConfig(width=8, num_layers=1, positions="none", lookup=True),
    "sasrec": SASRecConfig(width=8, num_layers=1),
    "hstu": HSTUConfig(width=8, num_layers=1),
    "fuxi_linear": FuXiLinearConfig(width=8, num_layers=1, periods=2),
    "hytrec": HyTRecConfig(width=8, num_layers=2, ratio="1:1", gate="retention", question="short"),
    "sinkrec": SinkRecConfig(width=8, codes=4),
    "mamba2": Mamba2Config(width=8, num_layers=1),
    "lrurec": LRURecConfig(width=8, num_layers=1),
    "gru4rec": GRU4RecConfig(width=8),
    "linrec": LinRecConfig(width=8),
    "sinkrec_input": SinkRecConfig(width=8, codes=4, write_gate="input"),
}
# Modules that are gates and are not called so.
GATES = {"selector", "fusion", "write_strength"}


@pytest.mark.parametrize("name", MODELS)
def test_only_kernels_that_are_no_gates_decay(name):
    model = nnx.eval_shape(lambda: MODELS[name].build(9, rngs=nnx.Rngs(0), request_time=True))
    params = nnx.state(model, nnx.Param)
    found = {
        parameter_path(path): decays
        for path, decays in jax.tree_util.tree_leaves_with_path(decayed(params))
    }
    assert len(found) == len(jax.tree.leaves(params))
    for path, decays in found.items():
        *module, kind = path.split("/")
        gate = any("gate" in part or part in GATES for part in module)
        assert decays == (kind == "kernel" and not gate), path
    assert sum(found.values()) > 4


def test_decay_reaches_the_model(experiment, make_run):
    """With a zero gradient Adam stands still, and what moves is what decays."""
    run = make_run(experiment)
    optimizer = make_optimizer(OptimizerConfig(weight_decay=0.5), optax.constant_schedule(0.1))
    params = run.model.fresh()[0]
    zeros = jax.tree.map(np.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    attention = updates["blocks"][0]["attention"]
    before = params["blocks"][0]["attention"]["output"]["kernel"][...]
    np.testing.assert_allclose(attention["output"]["kernel"][...], -0.05 * before, rtol=1e-5)
    assert not np.any(attention["gate"]["kernel"][...])
    assert not np.any(updates["embedding"]["table"][...])


def test_clipping_bounds_the_gradient():
    optimizer = make_optimizer(
        OptimizerConfig(clip_norm=1.0, epsilon=1e3), optax.constant_schedule(1.0)
    )
    params = {"kernel": np.zeros(2, np.float32)}
    # With so large an epsilon Adam's first update is gradient / epsilon.
    updates, _ = optimizer.update(
        {"kernel": np.array([30.0, 40.0], np.float32)}, optimizer.init(params), params
    )
    np.testing.assert_allclose(updates["kernel"], [-0.6e-3, -0.8e-3], rtol=1e-2)
