"""A file is the old one or the new one, never half of either."""

import json
import os

import numpy as np
import pytest

from linseqrec.errors import FileError
from linseqrec.files import check_form, read_arrays, replacing, write_json


def test_a_file_is_replaced_at_the_end_or_not_at_all(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("old")
    with replacing(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    with pytest.raises(OSError, match="no room"), replacing(path) as partial:
        partial.write_text("ne")
        raise OSError("no room")
    assert path.read_text() == "new"
    assert [each.name for each in tmp_path.iterdir()] == ["results.json"]


def test_what_is_written_has_the_suffix_of_the_file(tmp_path):
    """NumPy and Polars choose a format by it."""
    with replacing(tmp_path / "ranks.npz") as partial:
        assert partial.suffix == ".npz" and partial.parent == tmp_path
        partial.touch()


def test_json_has_null_for_what_is_not_finite(tmp_path):
    """Two places down, too; whole numbers, text and none stay what they are."""
    value = {"mean": float("nan"), "heads": [1.5, (float("inf"), 2)], "name": "a", "none": None}
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "mean": None,
        "heads": [1.5, [None, 2]],
        "name": "a",
        "none": None,
    }
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"half": 1, "no JSON": object()})
    assert (tmp_path / "a.json").read_text() == text


@pytest.mark.parametrize(
    ("value", "form", "message"),
    [
        ({"a": [{"b": "x"}]}, {"a": [{"b": int}]}, r"^a\[0\].b is \"x\", not a whole number$"),
        ({"a": True}, {"a": int}, "^a is true, not a whole number$"),
        ({"a": True}, {"a": float}, "^a is true, not a number$"),
        ({"a": 2**63}, {"a": int}, "^a is 9223372036854775808, beyond 64 bits$"),
        ({}, {"a": object}, "^it has no a$"),
        ({"a": {"b": 1}}, {"a": {"b": int, "c": int}}, "^it has no a.c$"),
        ({"step": 1, "loss": None}, {"step": int, str: float}, "^loss is null, not a number$"),
        ({"a": "x"}, {"a": (float, type(None))}, '^a is "x", not a number$'),
        ([], {}, "^it is a list, not an object$"),
    ],
)
def test_a_value_of_another_form_is_named_by_its_place(value, form, message):
    with pytest.raises(ValueError, match=message):
        check_form(value, form)


def test_a_form_admits_whole_numbers_for_numbers_and_more_names():
    check_form({"a": 1, "b": None, "more": []}, {"a": float, "b": (float, type(None))})
    check_form({"x": 1.5, "y": [0]}, {"y": [int], str: float})


@pytest.mark.parametrize("damage", ["cut", "no archive", "an array", "objects", "missing"])
def test_damaged_arrays_are_named(damage, tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=np.arange(1000))
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    elif damage == "no archive":
        path.write_bytes(b"PK\x03\x04" + bytes(100))
    elif damage == "an array":
        with path.open("wb") as file:
            np.save(file, np.arange(3))
    elif damage == "objects":
        np.savez(path, x=np.array([print], object))
    else:
        path.unlink()
    reason = "cannot be read: No such file" if damage == "missing" else "is damaged: "
    with pytest.raises(FileError, match=f"a.npz {reason}"):
        read_arrays(path)


def test_two_processes_may_write_one_file(tmp_path, monkeypatch):
    path = tmp_path / "report.md"
    with replacing(path) as first:
        monkeypatch.setattr(os, "getpid", lambda: 1)
        with replacing(path) as second:
            second.write_text("second")
            first.write_text("first")
        assert path.read_text() == "second"
    assert path.read_text() == "first"
