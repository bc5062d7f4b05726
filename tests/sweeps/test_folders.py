import re

from hypothesis import given, settings
from hypothesis import strategies as st

from linseqrec.config import Experiment
from linseqrec.config_fields import field_names
from linseqrec.sweeps.folders import folder_name

NAMES = field_names(Experiment())


def test_names_can_be_read():
    assert (
        folder_name({"optimizer.learning_rate": 3e-4, "training.seed": 0}, NAMES)
        == "learning_rate=0.0003,seed=0"
    )
    assert folder_name({"data.batch_size": 8, "data.plan": "packed"}, NAMES) == (
        "data.batch_size=8,plan=packed"
    )


def test_what_no_file_system_takes_is_replaced_and_told_apart_by_a_digest():
    first = folder_name({"data.folder": "data/ml-1m"}, NAMES)
    assert re.fullmatch(r"folder=data-ml-1m,[0-9a-f]{10}", first)
    assert folder_name({"data.folder": "data-ml-1m"}, NAMES) == "folder=data-ml-1m"
    # The names of two runs must also differ where case is not told apart.
    assert folder_name({"name": "A"}, NAMES).lower() != folder_name({"name": "a"}, NAMES).lower()
    joints = [("a+", "a"), ("a", "+a")]
    assert len({folder_name({"evaluation.filter_seen": joint}, NAMES) for joint in joints}) == 2


# What folders on a disk are found by: it must be the same in every version.
def test_names_are_stable():
    assert folder_name({"data.folder": "data/ml-1m"}, NAMES).endswith(",c7430ff86d")
    assert folder_name({"evaluation.filter_seen": ("none", "all")}, NAMES) == (
        "filter_seen=none+all"
    )


VALUES = st.fixed_dictionaries(
    {},
    optional={
        "name": st.text(max_size=200),
        "note": st.text(alphabet="aA+,=/-", max_size=6),
        "training.seed": st.integers(),
        "optimizer.learning_rate": st.floats(allow_nan=False, allow_infinity=False),
        "evaluation.filter_seen": st.lists(st.sampled_from(["a", "a+", "+a", "b"])).map(tuple),
    },
).filter(bool)


@settings(max_examples=150, deadline=None)
@given(VALUES, VALUES)
def test_no_two_share_a_name(first, second):
    one, other = folder_name(first, NAMES), folder_name(second, NAMES)
    assert (one.casefold() == other.casefold()) == (repr(first) == repr(second))
    assert len(one) <= 255 and re.fullmatch(r"[A-Za-z0-9._+=,-]+", one)
