"""Every experiment is a record: its result or that there is none, and where its data are from."""

import ast
import re

import pytest

from launch.flags import load_experiment
from linseqrec.training.optimizer import learning_rate
from tests.models.test_golden import EXPERIMENTS, ROOT

DOCSTRINGS = {path.stem: ast.get_docstring(ast.parse(path.read_text())) for path in EXPERIMENTS}
# Those of the quick start, whose table is the README's, and the one for any log.
WITHOUT = {"recgrela_quick", "sasrec_quick", "own_log"}


def prepare_commands(text):
    """The arguments of each `launch.prepare` that a text shows."""
    lines = re.sub(r"\\\n\s*", "", text)
    return re.findall(r"python -m launch\.prepare (.*)", lines)


@pytest.mark.parametrize("name", sorted(DOCSTRINGS.keys() - WITHOUT))
def test_an_experiment_has_a_result_or_is_listed_as_not_run(name):
    waiting = (ROOT / "RESULTS.md").read_text().split("\n## Not run yet\n")[1].split("\n## ")[0]
    assert ("\nResult (" in DOCSTRINGS[name]) != (f"`{name}`" in waiting)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_an_experiment_says_how_its_data_are_made(path):
    folder = load_experiment(path).data.folder
    own = DOCSTRINGS[path.stem]
    others = [DOCSTRINGS[name] for name in re.findall(r"`(\w+)\.py`", own)]
    made = [command for text in (own, *others) for command in prepare_commands(text)]
    assert not folder or any(command.endswith(f"--output={folder}") for command in made)


def test_every_log_is_described():
    described = prepare_commands((ROOT / "docs" / "data.md").read_text())
    shown = {command for text in DOCSTRINGS.values() for command in prepare_commands(text)}
    from_logs = {command for command in shown if "--input=logs/" in command}
    assert from_logs and from_logs <= set(described)


def test_the_experiment_for_any_log_fits_the_smallest():
    experiment = load_experiment(ROOT / "experiments" / "own_log.py")
    # At one step an epoch.
    learning_rate(experiment.optimizer, round(experiment.training.num_epochs))
    assert not experiment.note
