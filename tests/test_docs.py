"""What the README and the pages of `docs/` show is there, and works."""

import importlib.util
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx

from launch.flags import load_experiment
from linseqrec.config import Experiment
from linseqrec.config_json import from_json, to_json
from linseqrec.data.dataset import Dataset
from linseqrec.data.source import Source
from linseqrec.data.splits import leave_one_out
from linseqrec.events import Events
from linseqrec.training.run import Run

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLE = ROOT / "docs" / "add_a_model.md"


def shown(pattern):
    """What a pattern finds on the pages, but for the files that a page has its reader write."""
    found = {name for page in PAGES for name in re.findall(pattern, page.read_text())}
    text = "\n".join(page.read_text() for page in PAGES)
    return sorted(found - set(re.findall(r"^`(\S+)`:$", text, re.MULTILINE)))


@pytest.mark.parametrize("name", shown(r"[`\s=]((?:\w+/)+\w+\.(?:py|sh))\b"))
def test_a_file_that_a_page_names_is_there(name):
    assert (ROOT / name).exists() or (ROOT / "linseqrec" / name).exists()


def test_the_site_has_a_page_for_each_study():
    studies = {path.name for path in (ROOT / "results").glob("*.md")}
    assert studies and studies == {path.name for path in (ROOT / "docs" / "results").glob("*.md")}


@pytest.mark.parametrize("name", shown(r"--config=([\w/.:]+)"))
def test_an_experiment_that_a_page_names_is_there(name):
    assert load_experiment(ROOT / name).name


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The page's two files, written and read as its reader would: the model, the experiment."""
    blocks = [block.split("```")[0] for block in EXAMPLE.read_text().split("```python\n")[1:]]
    for name, block in zip(("mean.py", "mean_quick.py"), blocks, strict=True):
        (tmp_path / name).write_text(block)
    spec = importlib.util.spec_from_file_location("linseqrec.models.mean", tmp_path / "mean.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module, load_experiment(tmp_path / "mean_quick.py")


def test_the_example_model_is_a_running_mean(example):
    model = example[0].MeanConfig(width=4).build(9, rngs=nnx.Rngs(0))
    items = np.array([[3, 1, 4, 1, 5, 0]], np.int32)
    segments = np.array([[1, 1, 1, 2, 2, 0]], np.int32)
    events = Events(items, np.zeros_like(items), segments, np.zeros_like(items))
    hidden = np.asarray(jax.jit(lambda events: model(events).hidden)(events))[0]
    rows = np.asarray(model.item_table())[items[0]]
    np.testing.assert_allclose(hidden[2], rows[:3].mean(0), atol=1e-6)
    np.testing.assert_allclose(hidden[4], rows[3:5].mean(0), atol=1e-6)


def test_the_example_passes_the_linters(example):
    files = {"mean.py": "linseqrec/models", "mean_quick.py": "experiments"}
    for name, folder in files.items():
        command = [sys.executable, "-m", "ruff", "check", f"--stdin-filename={folder}/{name}", "-"]
        # The annotations that mypy asks for; the model is first-party, though it is not there.
        command += ["--extend-select=ANN001,ANN201"]
        command += ["--config=lint.isort.known-first-party=['linseqrec']"]
        text = (pathlib.Path(example[0].__file__).parent / name).read_text()
        done = subprocess.run(command, input=text, text=True, capture_output=True, cwd=ROOT)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_example_experiment_trains_and_is_restored_from_its_json(example):
    _, experiment = example
    assert from_json(to_json(experiment), Experiment) == experiment
    dataset = Dataset.from_arrays(
        np.tile(np.arange(1, 7, dtype=np.int32), 8), np.arange(48), np.arange(0, 49, 6), 6
    )
    run = Run.of(experiment, Source(dataset, leave_one_out(dataset), None))
    state = run.step.initial_state()
    before = jax.tree.map(np.asarray, state.params)
    state, metrics = run.step.update(state, run.batches[0])
    assert np.isfinite(float(metrics["loss"])) and not bool(state.halted)
    changed = jax.tree.map(lambda a, b: bool((a != np.asarray(b)).any()), before, state.params)
    assert all(jax.tree.leaves(changed))
