import pytest

from linseqrec.config import Experiment
from linseqrec.models.sasrec import SASRecConfig
from linseqrec.models.sinkrec import SinkRecConfig
from linseqrec.sweeps.axes import read_axes

EXPERIMENT = Experiment(model=SASRecConfig())


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"grids": ["seed=1.5"]}, "training.seed is '1.5': it must be a whole number"),
        ({"grids": ["learning_rate=nan"]}, "learning_rate is 'nan'"),
        ({"grids": ["seed"]}, "write FIELD=VALUE"),
        ({"grids": ["sed=1"]}, r"no field sed \(did you mean 'seed'"),
        ({"grids": ["seed=1", "training.seed=2"]}, "training.seed is swept twice"),
        ({"zips": ["seed=1", "training.seed=2"]}, "training.seed is swept twice"),
        ({"grids": ["seed=1"], "fixed": ["training.seed"]}, "seed is swept, and set by --config"),
        ({}, "nothing is swept: give --grid .*, --zip .*, or --random=N with --range"),
        ({"ranges": ["seed=int:1:9"]}, "--range seed=int:1:9 without --random: .* --random=8$"),
        ({"grids": ["seed=1"], "draws": 3}, "--random=3 without --range: .* --range learning_rate"),
        ({"ranges": ["learning_rate=int:1:9"], "draws": 2}, "holds floats, and int:1:9 draws int"),
        ({"ranges": ["data.folder=lin:1:9"], "draws": 2}, "holds strs"),
        ({"ranges": ["seed=lin:1:9"], "draws": 2}, "it must be a whole number"),
    ],
    ids=[
        "fraction for a whole number",
        "not a number",
        "no value",
        "unknown field",
        "one field in two grids",
        "one field in two zips",
        "swept and fixed",
        "nothing",
        "a range without draws",
        "draws without a range",
        "whole numbers for a float",
        "numbers for a text",
        "fractions for a whole number",
    ],
)
def test_what_the_fields_do_not_admit_is_refused(asked, message):
    with pytest.raises(ValueError, match=message):
        read_axes(EXPERIMENT, **asked)


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


def test_lists_among_the_values_stand_in_brackets():
    (first, second, third) = read_axes(EXPERIMENT, grids=["filter_seen=all,[none,all],none"])
    assert [run["evaluation.filter_seen"] for run in (first, second, third)] == [
        ("all",),
        ("none", "all"),
        ("none",),
    ]
    experiment = Experiment(model=SinkRecConfig())
    asked = read_axes(experiment, zips=["dilations=[1,2,4],[2]", "seed=3,4"])
    assert asked == [
        {"model.dilations": (1, 2, 4), "training.seed": 3},
        {"model.dilations": (2,), "training.seed": 4},
    ]
