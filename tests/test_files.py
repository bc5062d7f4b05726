"""A file is the old one or the new one, never half of either."""

import pytest

from linseqrec.files import replacing


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
