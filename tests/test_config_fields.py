import dataclasses
from typing import Annotated

import pytest

from linseqrec.config import EvaluationConfig, Experiment, TrainingConfig
from linseqrec.config_fields import (
    Config,
    ConfigError,
    Probability,
    admitted,
    at_least,
    choose,
    differences,
    field_names,
    flatten,
    parse,
    resolve,
    short_name,
    to_text,
)
from linseqrec.config_json import override
from linseqrec.data.source import DataConfig
from tests.own_configs import EXPERIMENT, OWN, OddConfig, OwnConfig


@dataclasses.dataclass(frozen=True)
class Limited(Config):
    """Limits in types of several kinds."""

    size: Annotated[int, "another library reads this", at_least(2)] | None = None
    shares: tuple[Probability, ...] = ()
    name: int | str | None = None
    sums: list[int] = ()
    table: dict[str, int] | None = None


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (TrainingConfig(seed="3"), "seed", 3),
        (TrainingConfig(num_epochs="2"), "num_epochs", 2.0),
        (TrainingConfig(num_epochs=2), "num_epochs", 2),
        (EvaluationConfig(filter_seen="all"), "filter_seen", ("all",)),
        (EvaluationConfig(filter_seen=["all", "none"]), "filter_seen", ("all", "none")),
        (OwnConfig(depth="none"), "depth", None),
        (OwnConfig(gate="false"), "gate", False),
        (OwnConfig(gate=1), "gate", True),
        (OwnConfig(rates="[1e-3,2]"), "rates", (0.001, 2.0)),
        (Limited(shares="0,1"), "shares", (0.0, 1.0)),
        (Limited(size="2"), "size", 2),
        (Limited(name="2"), "name", "2"),
        (Limited(sums=(2, 3)), "sums", (2, 3)),
    ],
)
def test_a_configuration_holds_values_of_its_types(config, field, value):
    assert repr(getattr(config, field)) == repr(value)


@pytest.mark.parametrize(
    ("cls", "wrong", "message"),
    [
        (TrainingConfig, {"seed": True}, "seed is True: it must be a whole number"),
        (TrainingConfig, {"seed": 1.0}, "seed is 1.0: it must be a whole number"),
        (TrainingConfig, {"num_epochs": 10**400}, "num_epochs is 1.*: it must be a finite number"),
        (TrainingConfig, {"num_epochs": None}, "num_epochs is None: it must be a finite number"),
        (OwnConfig, {"gate": "no"}, "gate is 'no': it must be true or false"),
        (OwnConfig, {"gate": 2}, "gate is 2: it must be true or false"),
        (OwnConfig, {"side": "up"}, "side is 'up': it must be one of 'left', 'right', or none$"),
        (OwnConfig, {"sizes": [1]}, r"sizes is \[1\]: it must be a tuple"),
        (OwnConfig, {"rates": (0.1, None)}, "rates is None: it must be a finite number"),
        (Limited, {"sums": "2,3"}, "sums is '2,3': it must be a list"),
        (Limited, {"table": "a"}, "table is 'a': it must be a dict"),
        (Limited, {"size": 1}, "size is 1: it must be at least 2"),
        (Limited, {"size": "1"}, "size is 1: it must be at least 2"),
        (Limited, {"shares": (0.5, 1.5)}, "shares is 1.5: it must be a probability, from 0 to 1"),
    ],
)
def test_a_value_that_a_type_does_not_admit_is_refused(cls, wrong, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        cls(**wrong)


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
    ("field", "words"),
    [
        ("optimizer.learning_rate", "a finite number, above 0"),
        ("optimizer.schedule", "one of constant, cosine, late_decay"),
        ("model.denominator_events", "a whole number, at least 1, or none"),
        ("evaluation.filter_seen", "a list, each one of none, all"),
        ("model.gate", "true or false"),
        ("model", ""),
    ],
)
def test_what_a_field_takes_is_said_in_words(field, words):
    assert admitted(field, Experiment()) == words


def test_a_name_that_is_no_option_is_refused_with_those_there_are():
    assert choose({"recgrela": 1, "sasrec": 2}, "sasrec") == 2
    with pytest.raises(
        ConfigError, match=r"^no 'sasrek': choose recgrela, sasrec \(did you mean 's"
    ):
        choose({"recgrela": 1, "sasrec": 2}, "sasrek")


# ---------------------------------------------------------------------------- names
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
    # A model of the same name could be another one elsewhere.
    line = "model: 'SASRecConfig' -> 'tests.own_configs:OddConfig'"
    assert differences(EXPERIMENT, other)["model"] == line
    assert differences(EXPERIMENT, other)["model.heads"] == "model.heads: 2 -> '(absent)'"
