import dataclasses
import json
import sys

import pytest

from linseqrec.config import Experiment
from linseqrec.config_fields import ConfigError, differences
from linseqrec.config_json import from_json, override, to_json
from linseqrec.models.base import ModelConfig
from linseqrec.models.sasrec import SASRecConfig
from linseqrec.models.sinkrec import SinkRecConfig
from tests.own_configs import EXPERIMENT, OddConfig, OwnConfig


@pytest.mark.parametrize(
    "model", [SASRecConfig(), SinkRecConfig(), OwnConfig(((1, 2), (3,))), OddConfig()]
)
def test_json_and_back(model):
    experiment = dataclasses.replace(EXPERIMENT, model=model)
    assert from_json(to_json(experiment), Experiment) == experiment


def test_json_and_back_to_the_same_text():
    # A digest of it names the model that a user's carried state belongs to.
    text = json.dumps(to_json(EXPERIMENT))
    assert (
        '"num_epochs": 2,' in text
        and json.dumps(to_json(from_json(json.loads(text), Experiment))) == text
    )


def test_json_from_before_there_were_meshes():
    value = to_json(EXPERIMENT)
    del value["mesh"]
    assert from_json(value, Experiment) == EXPERIMENT


def test_json_of_another_version_is_refused():
    value = to_json(EXPERIMENT)
    value["model"]["num_layer"] = 3
    with pytest.raises(ConfigError, match=r"no field 'num_layer' \(did you mean 'num_layers'"):
        from_json(value, Experiment)


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
            "class <run_path>:Model cannot be found: put a model of your .* --import=MODULE to",
        ),
        ({"class": "linseqrec.config:Model"}, "has no attribute 'Model'"),
        ({"class": "linseqrec.models.none:Model"}, "cannot be found: No module named"),
        ({"class": "linseqrec.files:replacing"}, "linseqrec.files:replacing is no dataclass"),
        ({"class": "linseqrec.errors:UserError"}, "is no dataclass"),
        ({"class": "os:abort"}, "os:abort is no dataclass"),
        ({"class": "subprocess:Popen", "args": ["false"]}, "subprocess:Popen is no dataclass"),
        (
            {"class": "linseqrec.training.optimizer:OptimizerConfig"},
            "is not a subclass of ModelConfig",
        ),
        (
            {"class": "tests.test_config_json:Effect"},
            "Effect is not a subclass of ModelConfig",
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
        from_json(to_json(EXPERIMENT) | {"model": model}, Experiment)


def test_json_of_another_class_is_refused():
    with pytest.raises(ConfigError, match="own_configs:OwnConfig is not a subclass of Experiment"):
        from_json(to_json(OwnConfig()), Experiment)


def test_json_does_not_choose_what_module_is_imported(tmp_path, monkeypatch):
    (tmp_path / "named_in_json.py").write_text("raise SystemExit('the file was run')")
    monkeypatch.syspath_prepend(tmp_path)
    value = to_json(EXPERIMENT) | {"model": {"class": "named_in_json:Config"}}
    with pytest.raises(ConfigError, match="cannot be found: .*--import=named_in_json"):
        from_json(value, Experiment)
    assert "named_in_json" not in sys.modules


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


def test_a_float_that_an_experiment_writes_as_an_int_is_a_float_with_and_without_overrides():
    for values in ({}, {"training.num_epochs": 2}):
        made = override(EXPERIMENT, values)
        assert repr(made.training.num_epochs) == "2.0" and repr(made.training.seed) == "0"


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
    assert made.model == OwnConfig(extra=(1, 2)) and made == from_json(to_json(made), Experiment)
    assert differences(made, from_json(to_json(made), Experiment)) == {}
