import dataclasses

import pytest

from linseqrec.config_fields import ConfigError
from linseqrec.config_names import differences, field_names, flatten, resolve, short_name
from linseqrec.data.source import DataConfig
from tests.own_configs import EXPERIMENT, OddConfig

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


def test_differences_are_listed_by_field():
    other = dataclasses.replace(EXPERIMENT, data=DataConfig(length=60), name="y")
    assert differences(EXPERIMENT, other) == {
        "name": "name: 'x' -> 'y'",
        "data.length": "data.length: 50 -> 60",
    }
    other = dataclasses.replace(EXPERIMENT, model=OddConfig())
    assert differences(EXPERIMENT, other)["model"] == "model: 'SASRecConfig' -> 'OddConfig'"
    assert differences(EXPERIMENT, other)["model.heads"] == "model.heads: 2 -> '(absent)'"
