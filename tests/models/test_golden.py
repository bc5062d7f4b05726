"""Numbers and configurations that must not change unnoticed.

`python -m tests.models.test_golden` rewrites both after a change that is meant; the difference in
version control is the record of it. `python -m tests.models.test_golden sinkrec hytrec` computes
the numbers of these models only.
"""

import functools
import json
import pathlib
import runpy
import sys

import jax
import numpy as np
import pytest

from launch.flags import load_experiment
from linseqrec.config import EvaluationConfig, Experiment
from linseqrec.config_fields import flatten
from linseqrec.data.dataset import Dataset
from linseqrec.data.source import DataConfig, Source
from linseqrec.data.splits import leave_one_out
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
from linseqrec.training.optimizer import OptimizerConfig
from linseqrec.training.run import Run

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
LOGS = sorted(path for path in (ROOT / "experiments").glob("*.py") if path.name != "__init__.py")
# FILE:NAME, by the name of its record; FILE alone has no names.
EXPERIMENTS = {
    f"{path.stem}-{name}".removesuffix("-"): f"{path}:{name}".removesuffix(":")
    for path in LOGS
    for name in runpy.run_path(str(path)).get("MODELS", [""])
}
MODELS = {
    "gated_deltanet": (
        GatedDeltaNetConfig(width=16, heads=2, num_layers=2, key_width=8, value_width=8),
        "packed",
    ),
    "recgrela": (RecGRELAConfig(width=16, heads=2, num_layers=2), "packed"),
    "recgrela_released": (
        RecGRELAConfig(width=16, heads=2, num_layers=2, causal=False),
        "prefixes",
    ),
    "hytrec": (
        HyTRecConfig(width=16, heads=2, short_events=5, num_layers=2, ratio="1:1"),
        "packed",
    ),
    "hytrec_timed": (
        HyTRecConfig(
            width=16,
            heads=2,
            short_events=5,
            num_layers=2,
            ratio="1:1",
            question="delayed",
            timed_attention=True,
        ),
        "packed",
    ),
    "sasrec": (SASRecConfig(width=16, heads=2, num_layers=2), "packed"),
    "hstu": (HSTUConfig(width=16, heads=2), "packed"),
    "fuxi_linear": (FuXiLinearConfig(width=16, num_layers=2), "packed"),
    # One window and few codes: a tie between codes would be settled by the compiler's rounding.
    "sinkrec": (
        SinkRecConfig(
            width=16, heads=2, dilations=(2,), levels=1, codes=4, loops=2, attention_window=8
        ),
        "packed",
    ),
    "mamba2": (
        Mamba2Config(width=16, heads=2, num_layers=2, key_width=8, value_width=8),
        "packed",
    ),
    "lrurec": (LRURecConfig(width=16), "packed"),
    "gru4rec": (GRU4RecConfig(width=16), "packed"),
    "linrec": (LinRecConfig(width=16), "packed"),
}
NUMBERS = ("loss", "gradient_norm", "update_norm")


@functools.cache
def small_run(name):
    """A run of a small model on twenty histories; its step is traced once for all tests."""
    model, plan = MODELS[name]
    rng = np.random.default_rng(0)
    offsets = np.arange(0, 241, 12)
    items = rng.integers(1, 51, 240).astype(np.int32)
    # Gaps of minutes to months.
    times = np.cumsum(86_400 * rng.gamma(0.3, 10, 240)).astype(np.int64)
    dataset = Dataset.from_arrays(items, times, offsets, 50)
    return Run.of(
        Experiment(
            model=model,
            data=DataConfig(length=24, batch_size=4, plan=plan),
            optimizer=OptimizerConfig(weight_decay=0.1, clip_norm=1.0),
            evaluation=EvaluationConfig(),
        ),
        Source(dataset, leave_one_out(dataset), None),
    )


def first_steps(name):
    """Loss, gradient norm and update norm of a model's first two steps, dropout included."""
    run = small_run(name)
    state, steps = run.step.initial_state(), []
    for index in range(2):
        state, metrics = run.step.update(state, run.batches[index])
        steps.append({number: float(metrics[number]) for number in NUMBERS})
    return steps


def resolved(name):
    """An experiment's configuration, a field a line."""
    values = flatten(load_experiment(EXPERIMENTS[name]))
    return "".join(f"{key}: {value}\n" for key, value in values.items())


@pytest.fixture(scope="module", params=MODELS)
def name(request):
    """A model; each is done with before the next, so that one run is kept at a time."""
    yield request.param
    small_run.cache_clear()


def test_the_first_steps_are_the_recorded_ones(name):
    recorded = json.loads((GOLDEN / "steps.json").read_text())[name]
    for step, expected in zip(first_steps(name), recorded, strict=True):
        assert step == pytest.approx(expected, rel=1e-4)


def test_the_step_lowers_for_accelerators(name):
    run = small_run(name)
    traced = run.step.update.trace(run.step.initial_state(), run.batches[0])
    # One program for both, which holds the operations of each.
    lowered = traced.lower(lowering_platforms=("cuda", "tpu")).as_text()
    # XLA's own operations alone: no library's solver, no callback.
    assert "custom_call" not in lowered


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_resolves_to_its_record(experiment):
    recorded = GOLDEN / "configs" / f"{experiment}.txt"
    assert recorded.exists(), "no record: python -m tests.models.test_golden"
    assert resolved(experiment).splitlines() == recorded.read_text().splitlines()


def test_every_record_has_its_experiment():
    recorded = {path.stem for path in (GOLDEN / "configs").glob("*.txt")}
    assert recorded == EXPERIMENTS.keys()


def test_the_numbers_of_the_named_models_alone_are_rewritten(tmp_path, monkeypatch):
    recorded = json.loads((GOLDEN / "steps.json").read_text())
    (tmp_path / "steps.json").write_text(json.dumps(recorded))
    module = sys.modules[__name__]
    monkeypatch.setattr(module, "GOLDEN", tmp_path)
    monkeypatch.setattr(module, "first_steps", lambda name: f"those of {name}")
    rewrite(["sinkrec"])
    written = json.loads((tmp_path / "steps.json").read_text())
    assert written == recorded | {"sinkrec": "those of sinkrec"}
    assert {path.stem for path in (tmp_path / "configs").glob("*.txt")} == EXPERIMENTS.keys()
    rewrite([])
    written = json.loads((tmp_path / "steps.json").read_text())
    assert written == {name: f"those of {name}" for name in MODELS}
    with pytest.raises(SystemExit, match="no model 'sincrec'; the models are gated_deltanet, "):
        rewrite(["sinkrec", "sincrec"])


def rewrite(names):
    """Writes all configurations anew, and the numbers of some models; no names: of all."""
    for name in names:
        if name not in MODELS:
            sys.exit(f"error: no model {name!r}; the models are {', '.join(MODELS)}")
    steps = json.loads((GOLDEN / "steps.json").read_text()) if names else {}
    steps |= {name: first_steps(name) for name in names or MODELS}
    steps = {name: steps[name] for name in MODELS if name in steps}
    (GOLDEN / "configs").mkdir(exist_ok=True)
    (GOLDEN / "steps.json").write_text(json.dumps(steps, indent=2) + "\n")
    for old in (GOLDEN / "configs").glob("*.txt"):
        old.unlink()
    for name in EXPERIMENTS:
        (GOLDEN / "configs" / f"{name}.txt").write_text(resolved(name))


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    rewrite(sys.argv[1:])
