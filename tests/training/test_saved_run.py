"""What programs read of a run's workdir, and refuse to."""

import pytest

from linseqrec.config import Experiment
from linseqrec.data.dataset import Dataset, DatasetError
from linseqrec.data.source import DataConfig
from linseqrec.data.writing import write_dataset
from linseqrec.errors import FileError, WorkdirError
from linseqrec.training import saved_run, workdir


def test_load_data_finds_the_data_set_of_a_run_and_no_other(tmp_path):
    dataset = Dataset.from_arrays([1, 2, 3, 2, 1, 3], [1, 2, 3, 4, 5, 6], [0, 3, 6])
    write_dataset(tmp_path / "data", dataset, ["a", "b"], ["x", "y", "z"])
    experiment = Experiment(data=DataConfig(folder=str(tmp_path / "data")))
    workdir.claim(tmp_path / "run", experiment, Dataset.open(tmp_path / "data").card)
    assert saved_run.load_data(tmp_path / "run").dataset.folder == tmp_path / "data"
    (tmp_path / "data").rename(tmp_path / "moved")
    with pytest.raises(
        WorkdirError, match=r"data, but that folder does not exist .* with --data=FOLDER"
    ):
        saved_run.load_data(tmp_path / "run")
    moved = str(tmp_path / "moved")
    assert saved_run.load_data(tmp_path / "run", moved).dataset.user_ids().tolist() == ["a", "b"]
    write_dataset(tmp_path / "data", dataset, ["a", "c"], ["x", "y", "z"])
    with pytest.raises(WorkdirError, match=r"on other data \(user_ids differ\)"):
        saved_run.load_data(tmp_path / "run")
    with pytest.raises(DatasetError, match="elsewhere is no dataset folder"):
        saved_run.load_data(tmp_path / "run", str(tmp_path / "elsewhere"))

    workdir.claim(tmp_path / "world", Experiment(), dataset.card)
    with pytest.raises(WorkdirError, match="generated world 'quick', which has no folder"):
        saved_run.load_data(tmp_path / "world", moved)


@pytest.mark.parametrize("name", ["config.json", "card.json"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (bytes(9), "it holds only zeros or spaces"),
        (b'{"a": ', "Expecting value"),
        (b"\xff", "invalid start byte"),
        (b"[]", "it is a list, not an object"),
        (b"[" * 100_000, "its values nest too deeply"),
    ],
)
def test_a_damaged_file_is_named(name, content, reason, experiment, tmp_path):
    workdir.claim(tmp_path, experiment, {"sha256": {"items": "1"}})
    (tmp_path / name).write_bytes(content)
    read = saved_run.read_card if name == "card.json" else saved_run.read_experiment
    with pytest.raises(FileError, match=f"{name} is damaged: .*{reason}"):
        read(tmp_path)
