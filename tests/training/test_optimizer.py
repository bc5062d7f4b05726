import jax
import numpy as np
import pytest

from linseqrec.training.optimizer import OptimizerConfig, is_decayed, learning_rate, make_optimizer


def test_warmup_then_cosine():
    config = OptimizerConfig(
        learning_rate=0.1, schedule="cosine", warmup_steps=10, final_fraction=0.2
    )
    rate = learning_rate(config, 110)
    halfway = 0.1 * (0.2 + 0.8 * 0.5)
    for step, expected in ((0, 0.0), (5, 0.05), (10, 0.1), (60, halfway), (110, 0.02)):
        assert float(rate(step)) == pytest.approx(expected, rel=1e-5), step


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"warmup_steps": 20}, "warmup_steps 20 exceeds the run's 10 steps"),
        ({"learning_rate": -0.1}, "learning_rate is -0.1: it must be above 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan: it must be above 0"),
    ],
)
def test_settings_that_make_no_schedule_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        learning_rate(OptimizerConfig(**wrong), 10)


@pytest.mark.parametrize(
    ("path", "decayed"),
    [
        ("blocks/0/attention/output/kernel", True),
        ("blocks/0/feed_forward/expand/kernel", True),
        ("blocks/0/feed_forward/expand/bias", False),
        ("blocks/0/attention/gate/kernel", False),
        ("blocks/0/attention/input_gate/kernel", False),
        ("blocks/0/attention/selector/kernel", False),
        ("blocks/0/reinjection/gate_key/kernel", False),
        ("fusion/kernel", False),
        ("blocks/0/mixer/decay_gate/kernel", False),
        ("blocks/0/mixer/write_strength/kernel", False),
        ("blocks/0/attention_norm/scale", False),
        ("blocks/0/attention/shortcut/weight", False),
        ("embedding/table", False),
    ],
)
def test_only_kernels_that_are_no_gates_decay(path, decayed):
    assert is_decayed(path) is decayed


def test_decay_reaches_the_model(experiment, make_run):
    """With a zero gradient Adam stands still, and what moves is what decays."""
    run = make_run(experiment)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.1, weight_decay=0.5), 10)
    params = run.model.initial_params
    zeros = jax.tree.map(np.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    attention = updates["blocks"][0]["attention"]
    before = params["blocks"][0]["attention"]["output"]["kernel"][...]
    np.testing.assert_allclose(attention["output"]["kernel"][...], -0.05 * before, rtol=1e-5)
    assert not np.any(attention["gate"]["kernel"][...])
    assert not np.any(updates["embedding"]["table"][...])


def test_clipping_bounds_the_gradient():
    optimizer = make_optimizer(OptimizerConfig(clip_norm=1.0, epsilon=1e3, learning_rate=1.0), 10)
    params = {"kernel": np.zeros(2, np.float32)}
    # With so large an epsilon Adam's first update is gradient / epsilon.
    updates, _ = optimizer.update(
        {"kernel": np.array([30.0, 40.0], np.float32)}, optimizer.init(params), params
    )
    np.testing.assert_allclose(updates["kernel"], [-0.6e-3, -0.8e-3], rtol=1e-2)
