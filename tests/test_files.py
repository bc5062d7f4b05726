"""A file is the old one or the new one, never half of either."""

import json

import pytest

from linseqrec.files import replacing, write_json


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
