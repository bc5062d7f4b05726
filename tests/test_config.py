import dataclasses
from typing import Literal

import pytest

from linseqrec import config as config_lib
from linseqrec.config import ConfigError, EvaluationConfig, Experiment, TrainingConfig
from linseqrec.data.source import DataConfig
from linseqrec.models.base import ModelConfig
from linseqrec.models.gated_deltanet import GatedDeltaNetConfig
from linseqrec.models.recgrela import RecGRELAConfig
from linseqrec.models.sasrec import SASRecConfig
from linseqrec.training.loss import LossConfig
from linseqrec.training.optimizer import OptimizerConfig

EXPERIMENT = Experiment(
    name="x",
    model=SASRecConfig(heads=2),
    data=DataConfig(length=50),
    training=TrainingConfig(num_epochs=2),
    evaluation=EvaluationConfig(filter_seen=("all", "none")),
)


def test_json_and_back():
    assert config_lib.from_json(config_lib.to_json(EXPERIMENT)) == EXPERIMENT


def test_json_of_another_version_is_refused():
    value = config_lib.to_json(EXPERIMENT)
    value["model"]["num_layer"] = 3
    with pytest.raises(ConfigError, match="no field 'num_layer' .did you mean 'num_layers'"):
        config_lib.from_json(value)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"class": "<run_path>:Model"}, "class <run_path>:Model cannot be found: No module named"),
        ({"class": "linseqrec.config:Model"}, "has no attribute 'Model'"),
        ({"width": 8, "heads": 2}, "no class is named for the fields width, heads"),
        ({"class": "linseqrec.models.sasrec:SASRecConfig", "heads": 3}, "SASRecConfig: width 64"),
    ],
)
def test_json_of_a_model_that_cannot_be_made_is_refused(model, message):
    with pytest.raises(ConfigError, match=message):
        config_lib.from_json(config_lib.to_json(EXPERIMENT) | {"model": model})


@dataclasses.dataclass(frozen=True)
class OwnConfig(ModelConfig):
    """A model's configuration in a module that can be imported; fields of any kind."""

    sizes: tuple = ()
    order: Literal["past", "future"] = "past"


def test_an_experiment_that_its_json_does_not_give_back_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Nameless(ModelConfig):
        width: int = 8

    for model in (SASRecConfig(), OwnConfig((1, 2)), OwnConfig(((1, 2), (3,)))):
        config_lib.check_restorable(dataclasses.replace(EXPERIMENT, model=model))
    for model, reason in (
        (Nameless(), "Nameless cannot be found"),
        (OwnConfig((float("inf"),)), "Out of range float values are not JSON compliant"),
        (OwnConfig({1, 2}), "set is not JSON serializable"),
        (OwnConfig([1, 2]), r"model.sizes: \[1, 2\] -> \(1, 2\)"),
    ):
        with pytest.raises(ConfigError, match=f"{reason}.*import it from the experiment's file"):
            config_lib.check_restorable(dataclasses.replace(EXPERIMENT, model=model))


def test_json_from_before_there_were_meshes():
    value = config_lib.to_json(EXPERIMENT)
    del value["mesh"]
    assert config_lib.from_json(value) == EXPERIMENT
    assert not config_lib.differences(config_lib.from_json(value), EXPERIMENT)


def test_overrides_keep_types():
    values = config_lib.to_config_dict(EXPERIMENT)
    values.model.heads = 4
    values.optimizer.learning_rate = 3e-4
    values.training.num_epochs = 0.5
    changed = config_lib.from_config_dict(values, EXPERIMENT)
    assert changed.model == SASRecConfig(heads=4)
    assert changed.optimizer.learning_rate == 3e-4
    assert changed.training.num_epochs == 0.5
    assert changed.evaluation == EXPERIMENT.evaluation
    with pytest.raises(TypeError):
        values.model.heads = "four"
    with pytest.raises(AttributeError, match='Did you mean "num_layers"'):
        values.model.num_layer = 4


def test_a_value_outside_its_choices_names_the_nearest():
    values = config_lib.to_config_dict(EXPERIMENT)
    values.data.plan = "pack"
    with pytest.raises(ConfigError, match="^data.plan is 'pack'.*did you mean 'packed'"):
        config_lib.from_config_dict(values, EXPERIMENT)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"data": DataConfig(length=-1)}, "data.length is -1: it must be at least 1, or 0: whole"),
        ({"data": DataConfig(stride=0)}, "^data.stride is 0: it must be in 1..200, data.length"),
        ({"data": DataConfig(stride=201)}, "^data.stride is 201: it must be in 1..200"),
        ({"data": DataConfig(length=0, stride=9)}, "data.stride is 9: .* unset for whole hist"),
        (
            {"data": DataConfig(plan="prefixes", stride=9)},
            "^data.stride is 9: it must be unset for the plan 'prefixes'",
        ),
        (
            {"data": DataConfig(plan="prefixes", phase="random")},
            "^data.phase is 'random': it must be 'fixed' for the plan 'prefixes'",
        ),
        ({"data": DataConfig(phase="rand")}, "^data.phase is 'rand'.*did you mean 'random'"),
        (
            {"model": SASRecConfig(max_length=50), "data": DataConfig(length=0)},
            "data.length is 0: it must be at most 50, the longest row that the model reads .*; 0 "
            "stands for whole histories",
        ),
        ({"data": DataConfig(batch_size=0)}, "data.batch_size is 0"),
        ({"data": DataConfig(split="fold")}, "^data.split is 'fold'.*did you mean 'folds'"),
        ({"loss": LossConfig(kind="ful")}, "^loss.kind is 'ful'.*did you mean 'full'"),
        ({"loss": LossConfig(negatives=0)}, "loss.negatives is 0"),
        ({"training": TrainingConfig(log_every=0)}, "training.log_every is 0"),
        ({"training": TrainingConfig(save_minutes=-1)}, "training.save_minutes is -1"),
        ({"optimizer": OptimizerConfig(clip_norm=-1)}, "optimizer.clip_norm is -1"),
        ({"optimizer": OptimizerConfig(b2=1.0)}, "optimizer.b2 is 1.0: .* below 1"),
        ({"training": TrainingConfig(patience=-1)}, "training.patience is -1"),
        ({"evaluation": EvaluationConfig(batch_size=0)}, "evaluation.batch_size is 0"),
        ({"evaluation": EvaluationConfig(ties="men")}, "^evaluation.ties is 'men'.*mean 'mean'"),
        (
            {"model": SASRecConfig(max_length=50), "data": DataConfig(length=60)},
            "data.length is 60: it must be at most 50, the longest row that the model reads",
        ),
        (
            {"model": RecGRELAConfig(positions="learned", max_length=199)},
            "data.length is 200: it must be at most 199",
        ),
        ({"training": TrainingConfig(accumulation_steps=3)}, "a divisor of data.batch_size, 32"),
        ({"training": TrainingConfig(num_epochs=0)}, "training.num_epochs is 0"),
        ({"training": TrainingConfig(evaluate_every=0)}, "training.evaluate_every is 0"),
        ({"evaluation": EvaluationConfig(filter_seen=("some",))}, "'none', 'all', or these two"),
        ({"evaluation": EvaluationConfig(filter_seen=())}, "'none', 'all', or these two"),
        ({"model": OwnConfig(order="pst")}, "^model.order is 'pst'.*did you mean 'past'"),
        ({"model": RecGRELAConfig(causal=False)}, "would read its targets"),
    ],
)
def test_what_cannot_be_is_refused(part, message):
    with pytest.raises(ConfigError, match=message):
        Experiment(**part)


@pytest.mark.parametrize("model", [SASRecConfig, RecGRELAConfig, GatedDeltaNetConfig])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"heads": 0}, "^heads is 0: it must be at least 1"),
        ({"dropout": 1.0}, "^dropout is 1.0: it must be at least 0 and below 1"),
        ({"dropout": -0.1}, "^dropout is -0.1"),
        ({"dropout": float("nan")}, "^dropout is nan"),
        ({"dtype": "float16"}, "^dtype is 'float16': it must be one of 'float32', 'bfloat16'"),
    ],
)
def test_models_that_cannot_be_are_refused(model, wrong, message):
    with pytest.raises(ConfigError, match=message):
        model(**wrong)


def test_an_override_that_a_model_refuses_names_the_section():
    @dataclasses.dataclass(frozen=True)
    class OddConfig(ModelConfig):
        width: int = 3

        def __post_init__(self):
            if self.width % 2 == 0:
                raise ValueError("even widths are not odd")

    for model, message in (
        (SASRecConfig(), "^model.width 8 must be a multiple of heads 3$"),
        (OddConfig(), "^model: even widths are not odd$"),
    ):
        values = config_lib.to_config_dict(dataclasses.replace(EXPERIMENT, model=model))
        values.model.width = 8
        if "heads" in values.model:
            values.model.heads = 3
        with pytest.raises(ConfigError, match=message):
            config_lib.from_config_dict(values, dataclasses.replace(EXPERIMENT, model=model))


def test_differences_are_listed_by_field():
    other = dataclasses.replace(EXPERIMENT, data=DataConfig(length=60), name="y")
    assert config_lib.differences(EXPERIMENT, other) == {
        "name": "name: 'x' -> 'y'",
        "data.length": "data.length: 50 -> 60",
    }


def test_a_model_config_of_no_kind_is_refused_with_its_base_class():
    @dataclasses.dataclass(frozen=True)
    class Loose:
        width: int = 8

    with pytest.raises(ConfigError, match=r"model is .*Loose\(width=8\).*models.base.ModelConfig"):
        dataclasses.replace(EXPERIMENT, model=Loose())
