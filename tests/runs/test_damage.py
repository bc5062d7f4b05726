"""Files of a run and its data set that are damaged, edited or hostile.

Each mutation changes one file of a good run. A program then does what it does with the good run, or
says on one line what is wrong; and no code runs that a file names. LINSEQREC_MUTATIONS=1000 tries
more than the default.
"""

import dataclasses
import json
import os
import random
import re
import shutil
import sys
import traceback
from importlib.metadata import packages_distributions

import jax
import numpy as np
import pytest
from absl import logging

from linseqrec.analysis.subject import Subject
from linseqrec.config import EvaluationConfig, Experiment, TrainingConfig
from linseqrec.data.source import DataConfig
from linseqrec.data.writing import write_dataset
from linseqrec.errors import UserError
from linseqrec.models.gated_deltanet import GatedDeltaNetConfig
from linseqrec.runs import figures
from linseqrec.runs.figures import write_figures
from linseqrec.runs.report import make_report, to_markdown
from linseqrec.runs.results import write_results
from linseqrec.serving.recommender import Recommender
from linseqrec.training import saved_run, workdir
from linseqrec.training.loop import train
from linseqrec.training.run import Run

FIRST = int(os.environ.get("LINSEQREC_FIRST_MUTATION", "0"))
MUTATIONS = int(os.environ.get("LINSEQREC_MUTATIONS", "20"))
# What the libraries may import when they first need it.
_INSTALLED = sys.stdlib_module_names | packages_distributions().keys()
_FORBIDDEN = (
    "ctypes.dlopen",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "os.system",
    "pickle.find_class",
    "socket.bind",
    "socket.connect",
    "socket.getaddrinfo",
    "subprocess.Popen",
)


class Watch:
    """Notes what code a file could have started while it was opened."""

    def __init__(self):
        self.folder, self.events = None, []
        sys.addaudithook(self._note)

    def __call__(self, folder):
        self.folder = str(folder)
        return self

    def __enter__(self):
        self.events = []

    def __exit__(self, *_):
        self.folder = None
        # Libraries try whether others are installed that they can do without.
        self.events = [
            (event, arguments)
            for event, arguments in self.events
            if event != "import" or arguments[0].split(".")[0] in sys.modules
        ]

    def _note(self, event, arguments):
        if self.folder is None:
            return
        if event == "import":
            foreign = arguments[0].split(".")[0] not in _INSTALLED and not arguments[0].startswith(
                "linseqrec."
            )
        elif event == "exec":
            foreign = arguments[0].co_filename.startswith(self.folder)
        elif event == "compile":
            foreign = str(arguments[1]).startswith(self.folder)
        else:
            foreign = event in _FORBIDDEN
        if foreign:
            self.events.append((event, arguments))


@pytest.fixture(scope="session")
def watch():
    return Watch()


@pytest.fixture(scope="session")
def good(tmp_path_factory, source):
    """A folder with a data set, two runs on it that have ended, and one that goes on."""
    root = tmp_path_factory.mktemp("good")
    dataset = source.dataset
    users = [f"u{user}" for user in range(dataset.num_users)]
    write_dataset(root / "data", dataset, users, [f"i{item}" for item in range(dataset.num_items)])
    experiment = Experiment(
        name="small",
        model=GatedDeltaNetConfig(width=8, heads=1, num_layers=1),
        data=DataConfig(folder="data", length=16, batch_size=16),
        training=TrainingConfig(num_epochs=2, log_every=1),
        evaluation=EvaluationConfig(filter_seen=("none", "all"), batch_size=16),
    )
    here = os.getcwd()
    os.chdir(root)
    try:
        for name, seed in (("a", 0), ("b", 1), ("c", 2)):
            training = dataclasses.replace(experiment.training, seed=seed)
            run = Run.of(dataclasses.replace(experiment, training=training))
            state = train(run, root / "runs" / name)
            if name != "c":
                write_results(run, state, root / "runs" / name)
    finally:
        os.chdir(here)
    for folder in (root / "runs").iterdir():
        shutil.rmtree(folder / "tensorboard")
    return root


def restored(root, folder):
    """As launch.evaluate, launch.recommend and launch.analyse do."""
    subject = Subject.of(folder, "name")
    return subject.step, digest(subject.variables)


def served(root, folder):
    recommender = Recommender.from_workdir(folder)
    return recommender.origin, recommender.identity["parameters"]


def reported(root, folder):
    """The tables, and the runs that are not in them."""
    report = make_report([root / "runs"])
    tables = to_markdown(report).split("## Not finished")[0]
    return tables, sorted(path.name for path in report.unfinished)


def drawn(root, folder):
    return [path.name for path in write_figures([folder], root / "figures")]


def resumed(root, folder):
    run = Run.of(saved_run.read_experiment(folder), saved_run.load_data(folder))
    state = train(run, folder)
    step = int(state.step)
    if (folder / "results.json").exists():
        write_results(run, state, folder)
    return step, digest(state.params)


def outcome(program, root, name, capsys):
    """What a program makes of a run: a value or an error's line, and what it printed."""
    capsys.readouterr()
    try:
        value = program(root, root / "runs" / name)
    except (UserError, OSError) as error:
        # `run_program` prints these on one line.
        assert isinstance(error, UserError) or error.filename, repr(error)
        value = f"error: {error}"
    return value, capsys.readouterr().err


def digest(params):
    return hash(tuple(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(params)))


def mutate(path, rng):
    """Changes a file; returns what was done, in words."""
    data = bytearray(path.read_bytes())
    kinds = [cut, empty, zero, flip, flip, scramble, remove, replace_by_folder, replace_by_link]
    if path.suffix in (".json", ".jsonl") or path.name in ("metadata", "_CHECKPOINT_METADATA"):
        kinds += [edit] * 8
    return rng.choice(kinds)(path, data, rng)


def cut(path, data, rng):
    end = rng.randrange(len(data))
    path.write_bytes(data[:end])
    return f"cut at {end} of {len(data)}"


def empty(path, data, rng):
    path.write_bytes(b"")
    return "emptied"


def zero(path, data, rng):
    path.write_bytes(bytes(len(data)))
    return "zeroed"


def flip(path, data, rng):
    place = rng.randrange(len(data))
    data[place] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    return f"a bit of byte {place} flipped"


def scramble(path, data, rng):
    place = rng.randrange(len(data))
    data[place : place + 8] = rng.randbytes(8)
    path.write_bytes(data)
    return f"bytes from {place} scrambled"


def remove(path, data, rng):
    path.unlink()
    return "removed"


def replace_by_folder(path, data, rng):
    path.unlink()
    path.mkdir()
    return "replaced by a folder"


def replace_by_link(path, data, rng):
    path.unlink()
    path.symlink_to("nowhere")
    return "replaced by a dangling link"


def edit(path, data, rng):
    """Changes one value of JSON, or of one of its lines."""
    lines = data.decode().splitlines() if path.suffix == ".jsonl" else [data.decode()]
    number = rng.randrange(len(lines))
    value = json.loads(lines[number])
    places = list(walk(value))
    holder, key, name = rng.choice(places)
    # Numbers that could be believed are small: a large model would only take memory and time.
    others = [None, True, -1, 0, 1.5, float("nan"), 10**40, "text", [], {}, [[]], {"class": "os:x"}]
    new = rng.choice([*others, "removed"])
    if new == "removed" and isinstance(holder, dict):
        del holder[key]
    else:
        holder[key] = new
    lines[number] = json.dumps(value)
    path.write_text("\n".join(lines) + "\n")
    return f"{name} is {new!r}"


def walk(value, name=""):
    """Each place in a JSON value: its holder, its key there, its dotted name."""
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in parts if isinstance(value, dict | list) else ():
        yield value, key, f"{name}.{key}".lstrip(".")
        if isinstance(part, dict | list):
            yield from walk(part, f"{name}.{key}")


def pick(root, name, rng):
    """A file of a run or of its data set, and a program that reads it."""
    folder, data = root / "runs" / name, root / "data"
    checkpoints = [path for path in folder.glob("checkpoints/[0-9]*/**/*") if path.is_file()]
    files, programs = rng.choice(
        [
            ([folder / "config.json", folder / "card.json"], [restored, served, reported, resumed]),
            ([folder / "environments.jsonl", folder / "speed.jsonl"], [reported, resumed]),
            ([folder / "metrics.jsonl"], [reported, drawn, resumed]),
            ([folder / "results.json", *folder.glob("ranks/*.npz")], [reported, drawn, resumed]),
            (list(folder.glob("checkpoints/sha256/*")), [restored, served, resumed]),
            (checkpoints, [restored, served, resumed]),
            (list(data.iterdir()), [restored, resumed]),
            ([folder / "lock"], [resumed]),
        ]
    )
    path = rng.choice(sorted(files))
    return (path, rng.choice(programs)) if path.exists() else pick(root, name, rng)


# Fields that a reader may change: they change what is shown, and no result.
_EDITABLE = ("name is", "note is", "data.folder is", "evaluation", "mesh")


@pytest.fixture
def tree(good, tmp_path, monkeypatch):
    """A function that copies the good folder; the programs run in the copy."""
    logging.set_verbosity(logging.FATAL)
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: path)
    fixed = {"git": None, "device": "1 x cpu"}
    monkeypatch.setattr(workdir, "environment", lambda _: fixed)

    def make():
        root = tmp_path / "copy"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(good, root)
        monkeypatch.chdir(root)
        return root

    return make


@pytest.mark.timeout(max(300, 2 * MUTATIONS))
def test_a_damaged_file_is_named_and_no_code_runs(tree, watch, capsys):
    expected, problems = {}, []
    for seed in range(FIRST, FIRST + MUTATIONS):
        rng = random.Random(seed)
        root, name = tree(), rng.choice("ac")
        path, program = pick(root, name, rng)
        if (name, program) not in expected:
            expected[name, program] = outcome(program, root, name, capsys)
            root = tree()
        what = f"{path.relative_to(root)} {mutate(path, rng)}"
        case = f"seed {seed}, {program.__name__}: {what}"
        try:
            with watch(root):
                value, said = outcome(program, root, name, capsys)
        except Exception as error:
            trace = traceback.extract_tb(error.__traceback__)
            ours = [line for line in trace if "linseqrec" in line.filename][-1]
            problems.append(f"{case}: {error!r} at {ours.filename}:{ours.lineno}")
            continue
        problems += [f"{case}: {event}" for event in watch.events]
        shown = path.name == "config.json" and any(field in what for field in _EDITABLE)
        listed = program is reported and name in value[1]
        if not (shown or listed or str(value).startswith("error: ")):
            if value != expected[name, program][0] and said == expected[name, program][1]:
                problems.append(f"{case}: taken for good")
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    "named",
    [
        "os:abort",
        "sys:exit",
        "this:c",
        "hostile:Config",
        "runs.a.hostile:Config",
        "linseqrec.training.checkpoint:Checkpoints",
        "linseqrec.training.checkpoint:Progress",
    ],
)
@pytest.mark.parametrize("place", ["the top", "model", "data"])
def test_a_configuration_runs_no_code_of_its_own(place, named, tree, watch, capsys, monkeypatch):
    root = tree()
    code = "raise AssertionError('this file ran')"
    for folder in (root, root / "runs" / "a"):
        (folder / "hostile.py").write_text(code)
    monkeypatch.syspath_prepend(root)
    path = root / "runs" / "c" / "config.json"
    config = json.loads(path.read_text())
    (config if place == "the top" else config[place])["class"] = named
    path.write_text(json.dumps(config))
    imported = named.split(":")[0] in sys.modules
    for program in (restored, served, resumed):
        with watch(root):
            value, _ = outcome(program, root, "c", capsys)
        assert value.startswith(f"error: {path}: the class {named} ") and not watch.events
    with watch(root):
        _, unfinished = outcome(reported, root, "c", capsys)[0]
    assert unfinished == ["c"] and not watch.events
    assert (named.split(":")[0] in sys.modules) == imported


class Hostile:
    """An object that runs a program when it is unpickled."""

    def __reduce__(self):
        return os.system, ("false",)


@pytest.mark.parametrize("name", ["runs/a/ranks/test.npz", "data/items.npy"])
def test_arrays_of_python_objects_are_not_unpickled(name, tree, watch, capsys):
    root = tree()
    save = np.save if name.endswith("npy") else np.savez
    save(root / name, np.array([Hostile()], object))
    results = root / "runs" / "a" / "results.json"
    held = json.loads(results.read_text())
    # As results of an earlier version, whose files nothing seals.
    del held["sha256"], held["config"]
    results.write_text(json.dumps(held))
    with watch(root):
        value, _ = outcome(drawn if "ranks" in name else restored, root, "a", capsys)
    assert name in value and re.search("Object arrays|Python objects", value)
    assert not watch.events


def test_an_edited_result_is_refused_and_an_earlier_one_still_opens(tree, capsys):
    root = tree()
    path = root / "runs" / "a" / "results.json"
    results = json.loads(path.read_text())
    results["test"]["Markov"]["metrics"]["none"]["HR@10"] = 0.0
    path.write_text(json.dumps(results))
    for program in (drawn, resumed):
        value, _ = outcome(program, root, "a", capsys)
        assert f"{path} is not what the run wrote" in value
    tables, unfinished = outcome(reported, root, "a", capsys)[0]
    assert unfinished == ["a", "c"] and "1 configuration, 1 run" in tables
    for field in ("sha256", "config"):
        assert "is damaged: it has no" in outcome(drawn, root, "a", capsys)[0] or field == "sha256"
        del results[field]
        path.write_text(json.dumps(results))
    assert outcome(drawn, root, "a", capsys)[0] == ["learning_curves.png", "by_length.png"]


def test_a_run_that_ended_keeps_its_configuration_but_for_what_readers_may_change(tree, capsys):
    root = tree()
    path = root / "runs" / "a" / "config.json"
    config = json.loads(path.read_text())
    config["note"], config["data"]["folder"] = "remark", str(root / "data")
    path.write_text(json.dumps(config))
    assert outcome(drawn, root, "a", capsys)[0] == ["learning_curves.png", "by_length.png"]
    other = {"class": "linseqrec.models.linrec:LinRecConfig"}
    path.write_text(json.dumps(config | {"model": other}))
    assert "model.class: " in outcome(drawn, root, "a", capsys)[0]
    config["model"]["dropout"] = 0.5
    path.write_text(json.dumps(config))
    for program in (drawn, restored, served):
        value, _ = outcome(program, root, "a", capsys)
        assert f"{path} has changed since the run ended" in value and "model.dropout: " in value
