import dataclasses

import pytest

from linseqrec.config import EvaluationConfig, Experiment, TrainingConfig
from linseqrec.config_fields import ConfigError
from linseqrec.data.source import DataConfig
from linseqrec.models.base import ModelConfig
from linseqrec.models.fuxi_linear import FuXiLinearConfig
from linseqrec.models.gated_deltanet import GatedDeltaNetConfig
from linseqrec.models.hstu import HSTUConfig
from linseqrec.models.linrec import LinRecConfig
from linseqrec.models.mamba2 import Mamba2Config
from linseqrec.models.recgrela import RecGRELAConfig
from linseqrec.models.sasrec import SASRecConfig
from linseqrec.training.loss import LossConfig
from linseqrec.training.optimizer import OptimizerConfig
from tests.own_configs import OddConfig, OwnConfig


def test_seeds_are_those_that_jax_tells_apart():
    TrainingConfig(seed=2**32 - 1)
    with pytest.raises(ConfigError, match=r"seed is 4294967296: it must be at least 0 and below"):
        TrainingConfig(seed=2**32)


@pytest.mark.parametrize(
    "name", ["Markov", "Personal Markov, last 200 events", "Personal popularity", "oracle"]
)
def test_an_experiment_has_no_baseline_s_name(name):
    with pytest.raises(ConfigError, match=f"name is '{name}': it must be a name that no baseline"):
        Experiment(name=name)


@pytest.mark.parametrize(
    ("section", "wrong", "message"),
    [
        (DataConfig, {"length": -1}, "length is -1: it must be at least 1, or 0: whole"),
        (DataConfig, {"stride": 0}, "stride is 0: it must be in 1..200, the length"),
        (DataConfig, {"stride": 201}, "stride is 201: it must be in 1..200"),
        (DataConfig, {"length": 0, "stride": 9}, "stride is 9: it must be none for whole hist"),
        (
            DataConfig,
            {"plan": "prefixes", "stride": 9},
            "stride is 9: it must be none for the plan 'prefixes'",
        ),
        (
            DataConfig,
            {"plan": "prefixes", "phase": "random"},
            "phase is 'random': it must be 'fixed' for the plan 'prefixes'",
        ),
        (DataConfig, {"phase": "rand"}, r"phase is 'rand'.*did you mean 'random'"),
        (DataConfig, {"batch_size": 0}, "batch_size is 0: it must be at least 1"),
        (DataConfig, {"world_users": 0}, "world_users is 0: it must be at least 1, or none"),
        (DataConfig, {"world_length": 0}, "world_length is 0: it must be above 0, or none"),
        (DataConfig, {"split": "fold"}, r"split is 'fold'.*did you mean 'folds'"),
        (LossConfig, {"kind": "ful"}, r"kind is 'ful'.*did you mean 'full'"),
        (LossConfig, {"negatives": 0}, "negatives is 0"),
        (TrainingConfig, {"log_every": 0}, "log_every is 0: it must be at least 1"),
        (TrainingConfig, {"accumulation_steps": 0}, "accumulation_steps is 0"),
        (TrainingConfig, {"save_minutes": -1}, "save_minutes is -1: it must be at least 0"),
        (TrainingConfig, {"patience": -1}, "patience is -1"),
        (TrainingConfig, {"num_epochs": 0}, "num_epochs is 0: it must be above 0"),
        (TrainingConfig, {"evaluate_every": 0}, "evaluate_every is 0"),
        (TrainingConfig, {"evaluate_every": float("nan")}, "evaluate_every is nan"),
        (OptimizerConfig, {"clip_norm": -1}, "clip_norm is -1"),
        (OptimizerConfig, {"final_fraction": -1}, "final_fraction is -1"),
        (OptimizerConfig, {"b2": 1.0}, "b2 is 1.0: it must be at least 0 and below 1"),
        (EvaluationConfig, {"batch_size": 0}, "batch_size is 0"),
        (EvaluationConfig, {"ties": "men"}, r"ties is 'men'.*did you mean 'mean'"),
        (
            EvaluationConfig,
            {"filter_seen": ("none", "al")},
            r"filter_seen is 'al': it must be one of 'none', 'all' \(did you mean 'all'",
        ),
        (EvaluationConfig, {"filter_seen": 3}, "filter_seen is 3: it must be a list"),
        (EvaluationConfig, {"filter_seen": ()}, r"filter_seen is \(\): .*'none', 'all', or these"),
        (
            EvaluationConfig,
            {"filter_seen": ("all", "all")},
            "filter_seen is .*'none', 'all', or these two",
        ),
        (OwnConfig, {"order": "pst"}, r"order is 'pst'.*mean 'past'"),
        # A model of a user's own that checks its fields in its own way only.
        (Experiment, {"model": OddConfig(2.5)}, "model.width is 2.5: it must be a whole number"),
    ],
)
def test_a_section_refuses_what_its_fields_do_not_take(section, wrong, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        section(**wrong)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"model": SASRecConfig(max_length=50), "data": DataConfig(length=0)},
            "data.length is 0: it must be at most 50, the longest row that the model reads .*; 0 "
            "stands for whole histories",
        ),
        (
            {"model": SASRecConfig(max_length=50), "data": DataConfig(length=60)},
            "data.length is 60: it must be at most 50, the longest row that the model reads",
        ),
        (
            {"model": RecGRELAConfig(positions="learned", max_length=199)},
            "data.length is 200: it must be at most 199",
        ),
        (
            {"training": TrainingConfig(accumulation_steps=3)},
            "training.accumulation_steps is 3: it must be a divisor of data.batch_size, 32",
        ),
        ({"model": RecGRELAConfig(causal=False)}, "data.plan is 'packed'.*would read its targets"),
    ],
)
def test_sections_that_do_not_fit_each_other_are_refused(sections, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        Experiment(**sections)


@pytest.mark.parametrize(
    "model",
    [
        SASRecConfig,
        RecGRELAConfig,
        GatedDeltaNetConfig,
        Mamba2Config,
        LinRecConfig,
        HSTUConfig,
        FuXiLinearConfig,
    ],
)
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"heads": 0}, "^heads is 0: it must be at least 1"),
        ({"dropout": 1.0}, "^dropout is 1.0: it must be at least 0 and below 1"),
        ({"dropout": -0.1}, "^dropout is -0.1"),
        ({"dropout": float("nan")}, "^dropout is nan"),
        (
            {"dtype": "float16"},
            "^dtype is 'float16': it must be one of 'auto', 'float32', 'bfloat16'",
        ),
    ],
)
@pytest.mark.usefixtures("without_type_checks")
def test_models_that_cannot_be_are_refused(model, wrong, message):
    with pytest.raises(ConfigError, match=message):
        model(**wrong)


def test_a_class_attribute_is_checked_and_a_field_may_be_computed():
    @dataclasses.dataclass(frozen=True)
    class Computed(ModelConfig):
        double: int = dataclasses.field(init=False)

        def __post_init__(self):
            super().__post_init__()
            object.__setattr__(self, "double", 2)

    class Half(Computed):
        dtype = "float16"

    assert Computed().double == 2
    with pytest.raises(ConfigError, match="^dtype is 'float16': it must be one of 'auto'"):
        Half()


def test_a_model_config_of_no_kind_is_refused_with_its_base_class():
    @dataclasses.dataclass(frozen=True)
    class Loose:
        width: int = 8

    with pytest.raises(ConfigError, match=r"model is .*Loose\(width=8\).*models.base.ModelConfig"):
        Experiment(model=Loose())
