"""`--config` and its overrides, as `launch.flags` reads them."""

import pytest
from absl import flags

from launch import flags as launch_flags
from launch.flags import load_experiment, split_overrides
from linseqrec.config_fields import ConfigError
from linseqrec.models.sasrec import SASRecConfig


@pytest.fixture
def defined(monkeypatch):
    """Flags of a program that has `--config`, apart from those of other tests."""
    monkeypatch.setattr(flags, "FLAGS", flags.FlagValues())
    monkeypatch.setattr(launch_flags.flags, "FLAGS", flags.FLAGS)
    flags.DEFINE_string("config", None, "", flag_values=flags.FLAGS)
    flags.DEFINE_multi_string("config.FIELD", [], "", flag_values=flags.FLAGS)
    flags.DEFINE_string("workdir", "", "", flag_values=flags.FLAGS)


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        (["--config.model.heads=2"], "model.heads", 2),
        (["--config.heads", "2"], "model.heads", 2),
        (["-config.heads=2"], "model.heads", 2),
        (["-config.heads", "2"], "model.heads", 2),
        (["--config.mesh.data", "-1"], "mesh.data", -1),
        (["--config.heads=4", "--config.model.heads=2"], "model.heads", 2),
        (["--config.note="], "note", ""),
        (["--config.note=a=b,c"], "note", "a=b,c"),
        (["--config.filter_seen=all,none"], "evaluation.filter_seen", ("all", "none")),
        (["--config.stride=none"], "data.stride", None),
    ],
)
def test_overrides_have_the_values_that_are_typed(defined, arguments, field, value):
    file = "--config=experiments/quick.py:sasrec"
    # What overrides a field may stand before the file, too.
    for argv in (["train", file, *arguments], ["train", *arguments, file, "--workdir=w"]):
        assert flags.FLAGS(split_overrides(argv)) == ["train"]
        given = launch_flags.overrides(load_experiment(flags.FLAGS.config))
        assert given == {field: value}
        flags.FLAGS.unparse_flags()


def test_a_list_is_not_given_element_by_element(defined):
    argv = ["train", "--config.filter_seen=all", "--config.evaluation.filter_seen=none"]
    flags.FLAGS(split_overrides([*argv, "--config=experiments/quick.py"]))
    with pytest.raises(ConfigError, match="given twice: write --config.*filter_seen=all,none for"):
        launch_flags.experiment()


@pytest.mark.parametrize(
    ("argument", "gate"), [("--config.gate", True), ("--noconfig.gate", False)]
)
def test_a_field_that_holds_a_bool_needs_no_value(defined, argument, gate):
    file = "--config=experiments/quick.py:recgrela"
    flags.FLAGS(split_overrides(["train", argument, file]))
    assert launch_flags.overrides(load_experiment(flags.FLAGS.config)) == {"model.gate": gate}


@pytest.mark.parametrize("field", ["note", "data.folder", "seed", "filter_seen"])
def test_a_field_that_holds_no_bool_needs_a_value(defined, field):
    argv = ["train", f"--config.{field}", "--workdir=w", "--config=experiments/quick.py"]
    flags.FLAGS(split_overrides(argv))
    with pytest.raises(ConfigError, match=f"{field} (has no value: write --config|is 'true': it)"):
        launch_flags.experiment()


def test_overrides_may_stand_in_a_file_of_flags(defined, tmp_path):
    (tmp_path / "flags").write_text("--config=experiments/quick.py\n--config.seed=3\n")
    flags.FLAGS(split_overrides(["train", f"--flagfile={tmp_path / 'flags'}"]))
    assert launch_flags.experiment().training.seed == 3


def test_a_program_without_a_configuration_takes_no_overrides(monkeypatch):
    monkeypatch.setattr(launch_flags.flags, "FLAGS", flags.FlagValues())
    assert split_overrides(["report", "--config.seed=3"]) == ["report", "--config.seed=3"]


@pytest.mark.parametrize(
    ("body", "name", "message"),
    [
        ("", "", "own.py defines no get_config()"),
        ("import mylab", "", "own.py: No module named 'mylab' (is its folder below PYTHONPATH?)"),
        ("def get_config(): return 3", "", "must return an Experiment"),
        (
            "def get_config(): return 3",
            ":sasrec",
            "own.py:sasrec: get_config(): too many posit",
        ),
        ("def get_config(name): return 3", "", "own.py: get_config(name): missing a required argu"),
        ("def get_config(): return Experiment(name=SASRecConfig(heads=3))", "", "own.py: width 64"),
        ("MODEL = SASRecConfig(heads=3)", "", "own.py: width 64"),
    ],
)
def test_a_file_that_defines_no_such_experiment_is_refused(tmp_path, body, name, message):
    imports = """
from linseqrec.config import Experiment
from linseqrec.models.sasrec import SASRecConfig
"""
    (tmp_path / "own.py").write_text(imports + body)
    with pytest.raises(ConfigError) as caught:
        load_experiment(f"{tmp_path / 'own.py'}{name}")
    assert message in str(caught.value)


def test_a_file_of_the_users_own_needs_no_names(tmp_path):
    (tmp_path / "own.py").write_text("""
from linseqrec.config import Experiment
from linseqrec.models.sasrec import SASRecConfig

def get_config():
    return Experiment(name="own", model=SASRecConfig())
""")
    made = load_experiment(tmp_path / "own.py")
    assert (made.name, made.model) == ("own", SASRecConfig())
