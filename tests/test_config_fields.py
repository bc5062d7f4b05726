import dataclasses
import json
import sys

import pytest

from linseqrec.config import EvaluationConfig, Experiment, TrainingConfig
from linseqrec.config_fields import ConfigError, parse, to_text
from linseqrec.config_json import from_json, override, to_json
from linseqrec.config_names import (
    differences,
    field_names,
    flatten,
    resolve,
    short_name,
)
from linseqrec.data.source import DataConfig
from linseqrec.models.base import ModelConfig
from linseqrec.models.sasrec import SASRecConfig
from linseqrec.models.sinkrec import SinkRecConfig
from tests.own_configs import OddConfig, OwnConfig

EXPERIMENT = Experiment(
    name="x",
    model=SASRecConfig(heads=2),
    data=DataConfig(length=50),
    training=TrainingConfig(num_epochs=2),
    evaluation=EvaluationConfig(filter_seen=("all", "none")),
)
OWN = dataclasses.replace(EXPERIMENT, model=OwnConfig())
NAMES = field_names(EXPERIMENT)
SECTIONS = {"model", "data", "loss", "optimizer", "training", "evaluation", "mesh"}


def test_only_fields_that_are_no_sections_hold_values():
    assert set(flatten(EXPERIMENT)) - set(NAMES) == SECTIONS


def test_the_end_of_a_name_means_the_one_field_that_has_it():
    assert resolve("seed", NAMES) == "training.seed"
    assert resolve("data.batch_size", NAMES) == "data.batch_size"
    # A whole name is no end of another's.
    assert resolve("name", [*NAMES, "model.name"]) == "name"
    assert short_name("model.name", [*NAMES, "model.name"]) == "model.name"
    assert short_name("mesh.model", NAMES) == "mesh.model"
    for field in NAMES:
        assert resolve(short_name(field, NAMES), NAMES) == field


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("batch_size", "batch_size may be data.batch_size or evaluation.batch_size: give more"),
        ("learning_rat", r"did you mean 'learning_rate'"),
        ("optimiser.learning_rate", r"did you mean 'optimizer.learning_rate'"),
        ("model.num_layer", r"no field model.num_layer \(did you mean 'model.num_layers'"),
        ("rate", "no field rate$"),
        ("ed", "no field ed"),
        ("model", "model is a section: name a field of it, as model.width"),
    ],
)
def test_a_name_of_no_field_or_of_several_is_refused(name, message):
    with pytest.raises(ConfigError, match=message):
        resolve(name, NAMES)


@pytest.mark.parametrize(
    ("experiment", "field", "text", "value"),
    [
        (EXPERIMENT, "training.seed", "3", 3),
        (EXPERIMENT, "optimizer.learning_rate", "1e-3", 0.001),
        (EXPERIMENT, "training.num_epochs", "2", 2.0),
        (EXPERIMENT, "data.world_users", "60", 60),
        (EXPERIMENT, "data.stride", "none", None),
        (EXPERIMENT, "data.folder", "data/ml-1m", "data/ml-1m"),
        (EXPERIMENT, "note", "", ""),
        (EXPERIMENT, "note", "[a,b]", "[a,b]"),
        (EXPERIMENT, "evaluation.filter_seen", "none,all", ("none", "all")),
        (EXPERIMENT, "evaluation.filter_seen", "[none,all]", ("none", "all")),
        (EXPERIMENT, "evaluation.filter_seen", "all", ("all",)),
        (OWN, "model.depth", "2", 2),
        (OWN, "model.depth", "None", None),
        (OWN, "model.side", "right", "right"),
        (OWN, "model.side", "none", None),
        (OWN, "model.gate", "False", False),
        (OWN, "model.rates", "[]", ()),
        (OWN, "model.rates", "1e-3,2", (0.001, 2.0)),
    ],
)
def test_a_text_has_the_type_of_its_field(experiment, field, text, value):
    parsed = parse(text, field, experiment)
    assert repr(parsed) == repr(value)
    assert parse(to_text(value), field, experiment) == value
    changed = override(experiment, {field: value})
    assert flatten(changed)[field] == value
    assert flatten(changed) | {field: None} == flatten(experiment) | {field: None}


@pytest.mark.parametrize(
    ("experiment", "field", "text", "message"),
    [
        (EXPERIMENT, "training.seed", "1.5", "training.seed is '1.5': it must be a whole number"),
        (EXPERIMENT, "training.seed", "", "training.seed is ''"),
        (EXPERIMENT, "training.seed", "none", "training.seed is 'none'"),
        (
            EXPERIMENT,
            "optimizer.learning_rate",
            "nan",
            "optimizer.learning_rate is 'nan': .* finite",
        ),
        (OWN, "model.gate", "no", "model.gate is 'no': it must be true or false"),
        (OWN, "model.depth", "deep", "model.depth is 'deep': it must be a whole number"),
        (OWN, "model.rates", "1,,inf", "model.rates is 'inf': it must be a finite number"),
        (OWN, "model.sizes", "1,2", "model.sizes is '1,2': it must be a tuple"),
    ],
)
def test_a_text_that_is_no_value_of_its_field_is_refused(experiment, field, text, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        parse(text, field, experiment)


@pytest.mark.parametrize(
    ("model", "values", "message"),
    [
        (SASRecConfig(), {"data.plan": "pack"}, r"^data.plan is 'pack'.*did you mean 'packed'"),
        (SASRecConfig(), {"model.heads": 3}, "^model.width 64 must be a multiple of heads 3$"),
        (OddConfig(), {"model.width": 8}, "^model: even widths are not odd$"),
        (SASRecConfig(), {"training.accumulation_steps": 5}, "^training.acc.* data.batch_size, 32"),
    ],
)
def test_a_value_that_a_section_refuses_is_named(model, values, message):
    with pytest.raises(ConfigError, match=message):
        override(dataclasses.replace(EXPERIMENT, model=model), values)


def test_fields_that_refuse_each_other_change_together():
    made = override(EXPERIMENT, {"model.width": 9, "model.heads": 3, "training.num_epochs": 0.5})
    assert (made.model, made.training.num_epochs) == (SASRecConfig(width=9, heads=3), 0.5)


def test_differences_are_listed_by_field():
    other = dataclasses.replace(EXPERIMENT, data=DataConfig(length=60), name="y")
    assert differences(EXPERIMENT, other) == {
        "name": "name: 'x' -> 'y'",
        "data.length": "data.length: 50 -> 60",
    }
    other = dataclasses.replace(EXPERIMENT, model=OddConfig())
    assert differences(EXPERIMENT, other)["model"] == "model: 'SASRecConfig' -> 'OddConfig'"
    assert differences(EXPERIMENT, other)["model.heads"] == "model.heads: 2 -> '(absent)'"


@pytest.mark.parametrize(
    "model", [SASRecConfig(), SinkRecConfig(), OwnConfig(((1, 2), (3,))), OddConfig()]
)
def test_json_and_back(model):
    experiment = dataclasses.replace(EXPERIMENT, model=model)
    assert from_json(to_json(experiment)) == experiment


def test_a_float_that_an_experiment_writes_as_an_int_is_a_float_with_and_without_overrides():
    for values in ({}, {"training.num_epochs": 2}):
        made = override(EXPERIMENT, values)
        assert repr(made.training.num_epochs) == "2.0" and repr(made.training.seed) == "0"


def test_json_and_back_to_the_same_text():
    # A digest of it names the model that a user's carried state belongs to.
    text = json.dumps(to_json(EXPERIMENT))
    assert '"num_epochs": 2,' in text and json.dumps(to_json(from_json(json.loads(text)))) == text


def test_json_from_before_there_were_meshes():
    value = to_json(EXPERIMENT)
    del value["mesh"]
    assert from_json(value) == EXPERIMENT


def test_json_of_another_version_is_refused():
    value = to_json(EXPERIMENT)
    value["model"]["num_layer"] = 3
    with pytest.raises(ConfigError, match=r"no field 'num_layer' \(did you mean 'num_layers'"):
        from_json(value)


@dataclasses.dataclass(frozen=True)
class Effect:
    """A dataclass of an imported module that is no configuration, and does something when made."""

    def __post_init__(self):
        pytest.fail("it was made")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            {"class": "<run_path>:Model"},
            "class <run_path>:Model cannot be found: put a model of your",
        ),
        ({"class": "linseqrec.config:Model"}, "has no attribute 'Model'"),
        ({"class": "linseqrec.models.none:Model"}, "cannot be found: No module named"),
        ({"class": "linseqrec.files:replacing"}, "linseqrec.files:replacing is no dataclass"),
        ({"class": "linseqrec.errors:UserError"}, "is no dataclass"),
        ({"class": "os:abort"}, "os:abort is no dataclass"),
        ({"class": "subprocess:Popen", "args": ["false"]}, "subprocess:Popen is no dataclass"),
        ({"class": "linseqrec.training.optimizer:OptimizerConfig"}, "is not ModelConfig, which"),
        (
            {"class": "tests.test_config_fields:Effect"},
            "Effect is not ModelConfig, which its field",
        ),
        ({"class": 3}, "the class 3 cannot be found"),
        ({"width": 8, "heads": 2}, "model.class is missing beside width, heads"),
        (
            {"class": "linseqrec.models.sasrec:SASRecConfig", "heads": 3},
            "^model.width 64 must be a multiple of heads 3$",
        ),
        ({"class": "tests.own_configs:OwnConfig", "order": "pst"}, "model.order is 'pst'"),
    ],
)
def test_json_of_a_model_that_cannot_be_made_is_refused(model, message):
    with pytest.raises(ConfigError, match=message):
        from_json(to_json(EXPERIMENT) | {"model": model})


def test_json_of_no_class_of_the_library_is_refused():
    with pytest.raises(ConfigError, match="own_configs:OwnConfig is not a class of linseqrec"):
        from_json(to_json(OwnConfig()))


def test_json_does_not_choose_what_module_is_imported(tmp_path, monkeypatch):
    (tmp_path / "named_in_json.py").write_text("raise SystemExit('the file was run')")
    monkeypatch.syspath_prepend(tmp_path)
    value = to_json(EXPERIMENT) | {"model": {"class": "named_in_json:Config"}}
    with pytest.raises(ConfigError, match="cannot be found: .*--import=named_in_json"):
        from_json(value)
    assert "named_in_json" not in sys.modules


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (OwnConfig((float("inf"),)), "Out of range float values are not JSON compliant"),
        (OwnConfig(extra={1, 2}), "set is not JSON serializable.*keep to fields of plain values"),
    ],
)
def test_an_experiment_that_its_json_does_not_hold_is_refused(model, reason):
    with pytest.raises(ConfigError, match=f"config.json cannot hold this experiment.*{reason}"):
        override(dataclasses.replace(EXPERIMENT, model=model), {})


def test_a_class_within_a_function_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Nameless(ModelConfig):
        width: int = 8

    with pytest.raises(ConfigError, match="Nameless cannot be found"):
        override(dataclasses.replace(EXPERIMENT, model=Nameless()), {})


def test_an_experiment_is_what_its_json_gives_back():
    made = override(dataclasses.replace(EXPERIMENT, model=OwnConfig(extra=[1, 2])), {})
    assert made.model == OwnConfig(extra=(1, 2)) and made == from_json(to_json(made))
    assert differences(made, from_json(to_json(made))) == {}
