import dataclasses

import pytest

from linseqrec.config import Experiment, flatten
from linseqrec.errors import SweepError
from linseqrec.models.sasrec import SASRecConfig
from linseqrec.sweeps import fields
from linseqrec.sweeps.axes import read_axes

EXPERIMENT = Experiment(model=SASRecConfig())
NAMES = fields.field_names(EXPERIMENT)


def test_only_fields_with_values_are_swept():
    assert set(flatten(EXPERIMENT)) - set(NAMES) == {
        "model",
        "data",
        "loss",
        "optimizer",
        "training",
        "evaluation",
        "mesh",
    }


def test_the_end_of_a_name_means_the_one_field_that_has_it():
    assert fields.resolve("seed", NAMES) == "training.seed"
    assert fields.resolve("data.batch_size", NAMES) == "data.batch_size"
    # A whole name is no end of another's.
    assert fields.resolve("name", [*NAMES, "model.name"]) == "name"
    assert fields.short_name("model.name", [*NAMES, "model.name"]) == "model.name"
    assert fields.short_name("mesh.model", NAMES) == "mesh.model"
    for field in NAMES:
        assert fields.resolve(fields.short_name(field, NAMES), NAMES) == field


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("batch_size", "data.batch_size or evaluation.batch_size: give more"),
        ("learning_rat", "did you mean optimizer.learning_rate?"),
        ("rate", "no field rate"),
        ("ed", "no field ed"),
        ("model", "no field model"),
    ],
)
def test_no_field_or_several_are_refused(name, message):
    with pytest.raises(SweepError, match=message):
        fields.resolve(name, NAMES)


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("training.seed", "3", 3),
        ("optimizer.learning_rate", "1e-3", 0.001),
        ("training.num_epochs", "2", 2.0),
        ("data.world_users", "60", 60),
        ("data.folder", "data/ml-1m", "data/ml-1m"),
        ("evaluation.filter_seen", "none+all", ("none", "all")),
        ("evaluation.filter_seen", "all", ("all",)),
    ],
)
def test_values_have_their_fields_types(field, text, value):
    parsed = fields.parse(text, field, EXPERIMENT)
    assert parsed == value and type(parsed) is type(value)
    assert fields.parse(fields.to_text(value), field, EXPERIMENT) == value
    changed = fields.override(EXPERIMENT, {field: value})
    assert flatten(changed)[field] == value
    assert flatten(changed) | {field: None} == flatten(EXPERIMENT) | {field: None}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"grids": ["seed=1.5"]}, "training.seed is '1.5': it must be a value of type int"),
        ({"grids": ["learning_rate=nan"]}, "learning_rate is 'nan'"),
        ({"grids": ["seed"]}, "write FIELD=VALUES"),
        ({"grids": ["seed=1", "training.seed=2"]}, "training.seed is swept twice"),
        ({"zips": ["seed=1", "training.seed=2"]}, "training.seed is swept twice"),
        ({"grids": ["seed=1"], "fixed": ["training.seed"]}, "seed is swept, and set by --config"),
        ({}, "nothing is swept"),
        ({"ranges": ["seed=int:1:9"]}, "both how many draws and at least one range"),
        ({"grids": ["seed=1"], "draws": 3}, "both how many draws and at least one range"),
        ({"ranges": ["learning_rate=int:1:9"], "draws": 2}, "holds floats, and int:1:9 draws int"),
        ({"ranges": ["data.folder=lin:1:9"], "draws": 2}, "holds strs"),
        ({"ranges": ["seed=lin:1:9"], "draws": 2}, "must be a value of type int"),
    ],
)
def test_what_the_fields_do_not_admit_is_refused(asked, message):
    with pytest.raises(SweepError, match=message):
        read_axes(EXPERIMENT, **asked)


def test_a_value_that_the_configuration_refuses_is_named():
    with pytest.raises(SweepError, match=r"data.plan=pack: .*did you mean 'packed'"):
        fields.override(EXPERIMENT, {"data.plan": "pack"})
    with pytest.raises(SweepError, match="a divisor of data.batch_size, 32"):
        fields.override(EXPERIMENT, {"training.accumulation_steps": 5})


def test_overrides_stand_in_the_order_of_the_fields_whatever_was_asked_first():
    asked = read_axes(EXPERIMENT, grids=["seed=0,1"], zips=["width=8,16", "heads=1,2"])
    assert [list(overrides) for overrides in asked] == 4 * [
        ["model.width", "model.heads", "training.seed"]
    ]
    assert [tuple(overrides.values()) for overrides in asked] == [
        (8, 1, 0),
        (16, 2, 0),
        (8, 1, 1),
        (16, 2, 1),
    ]


def test_flags_give_a_tuple_element_by_element():
    @dataclasses.dataclass(frozen=True)
    class Switch:
        on: bool = True

    flags = fields.to_flags({"evaluation.filter_seen": ("none", "all"), "model.causal": False})
    assert flags == [
        "--config.evaluation.filter_seen=none",
        "--config.evaluation.filter_seen=all",
        "--config.model.causal=false",
    ]
    assert fields.parse("False", "on", Switch()) is False
    with pytest.raises(SweepError, match="type bool"):
        fields.parse("no", "on", Switch())
