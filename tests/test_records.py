"""An experiment's file says where its data are from, and where its results stand."""

import ast
import re

import pytest

from launch.flags import load_experiment
from linseqrec.training.optimizer import learning_rate
from tests.models.test_golden import EXPERIMENTS, LOGS, ROOT

# Of the files of several experiments: another is its user's own.
DOCSTRINGS = {
    path.stem: ast.get_docstring(ast.parse(path.read_text()))
    for path in LOGS
    if path.stem not in EXPERIMENTS
}


def prepare_commands(text):
    """The arguments of each `launch.prepare` that a text shows."""
    lines = re.sub(r"\\\n\s*", "", text)
    return re.findall(r"python -m launch\.prepare (.*)", lines)


@pytest.mark.parametrize("log", DOCSTRINGS)
def test_a_docstring_links_to_results_that_there_are(log):
    links = re.findall(r"results/\w+\.md", DOCSTRINGS[log])
    assert links or log in ("quick", "own_log")
    assert all((ROOT / link).exists() for link in links)


@pytest.mark.parametrize("log", DOCSTRINGS)
def test_a_docstring_shows_a_command_for_an_experiment_of_its_file(log):
    shown = re.findall(rf"--config=experiments/{log}\.py:(\w+)", DOCSTRINGS[log])
    assert shown and {f"{log}-{name}" for name in shown} <= EXPERIMENTS.keys()


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if "-" in name])
def test_a_docstring_says_how_the_data_are_made(name):
    folder = load_experiment(EXPERIMENTS[name]).data.folder
    made = prepare_commands(DOCSTRINGS[name.partition("-")[0]])
    assert not folder or any(command.endswith(f"--output={folder}") for command in made)


def test_every_log_is_described():
    described = prepare_commands((ROOT / "docs" / "data.md").read_text())
    shown = {command for text in DOCSTRINGS.values() for command in prepare_commands(text)}
    from_logs = {command for command in shown if "--input=logs/" in command}
    assert from_logs and from_logs <= set(described)


@pytest.mark.parametrize("log", DOCSTRINGS)
def test_a_file_has_recgrela_first_and_the_other_systems_too(log):
    names = [name.partition("-")[2] for name in EXPERIMENTS if name.startswith(f"{log}-")]
    assert names[0] == "recgrela"
    assert {"hytrec", "sinkrec", "gated_deltanet", "sasrec"} < set(names)
    default = load_experiment(ROOT / "experiments" / f"{log}.py")
    assert default == load_experiment(EXPERIMENTS[f"{log}-recgrela"])


@pytest.mark.parametrize("log", DOCSTRINGS)
def test_the_models_of_a_log_share_its_recipe(log):
    made = [load_experiment(EXPERIMENTS[name]) for name in EXPERIMENTS if f"{log}-" in name]
    # RecGRELA as released trains on other rows.
    sections = ("note", "data", "loss", "optimizer", "training", "evaluation", "mesh")
    recipes = [
        [getattr(experiment, section) for section in sections]
        for experiment in made
        if getattr(experiment.model, "causal", True)
    ]
    assert len(recipes) >= 5 and all(recipe == recipes[0] for recipe in recipes)


def test_the_experiment_for_any_log_fits_the_smallest():
    experiment = load_experiment(ROOT / "experiments" / "own_log.py")
    # At one step an epoch.
    learning_rate(experiment.optimizer, round(experiment.training.num_epochs))
    assert not experiment.note
