"""Flags of several programs: folders, `--data`, and `--config` with its overrides.

`--config` is an experiment's file, whose fields `--config.FIELD=VALUE` overrides.
"""

import dataclasses
import re
import runpy
import sys
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_dict, config_flags

from linseqrec import config as config_lib
from linseqrec.errors import SweepError
from linseqrec.sweeps import fields

# What is defined from here on belongs to the program that asked for it: its `--help` shows it.
flags.disclaim_key_flags()


@dataclasses.dataclass
class _Unset:
    """The flag's value before it is given."""


def define_config() -> None:
    """Defines `--config=experiments/NAME.py` and its overrides; call it at import."""
    config_flags.DEFINE_config_dataclass(
        "config",
        _Unset(),
        "Experiment file; override its fields by --config.optimizer.learning_rate=3e-4.",
        parse_fn=lambda path: _mutable(path),
    )
    # "_Unset()" would say nothing in --help.
    flags.FLAGS["config"].default_as_str = None


def define_data() -> flags.FlagHolder[str]:
    """Defines `--data`, for programs that read a run's data set again; call it at import."""
    return flags.DEFINE_string(
        "data", "", "Folder of the run's data set; unset: where it was when the run was started."
    )


def experiment() -> config_lib.Experiment:
    """The experiment that the parsed flags ask for.

    Raises:
      ConfigError: If no `--config` was given, an overridden value is not one its field admits, or
        a run of it could not be restored.
    """
    values = flags.FLAGS.config
    if isinstance(values, _Unset):
        raise config_lib.ConfigError("give an experiment: --config=experiments/NAME.py")
    made = config_lib.from_config_dict(values, load_experiment(experiment_file()))
    config_lib.check_restorable(made)
    return made


def experiment_file() -> str:
    """The file that `--config` names."""
    return config_flags.get_config_filename(flags.FLAGS["config"])


def overrides() -> dict[str, Any]:
    """The fields overridden by `--config.FIELD=VALUE`, by dotted name, with their values."""
    values = config_lib.flatten(experiment())
    given = config_flags.get_override_values(flags.FLAGS["config"])
    return {field: values[field] for field in given}


def load_experiment(path: str | Path) -> config_lib.Experiment:
    """`get_config()` of an experiment's file.

    Raises:
      ConfigError: If there is no such file, or it defines no experiment.
    """
    path = Path(path)
    if not path.is_file():
        raise config_lib.ConfigError(f"no experiment file {path}")
    module = runpy.run_path(str(path))
    made = module["get_config"]() if "get_config" in module else None
    if not isinstance(made, config_lib.Experiment):
        raise config_lib.ConfigError(f"{path}: get_config() must return an Experiment")
    return made


def define_folder(
    name: str, help_string: str, *, default: str | None = None, required: bool = False
) -> flags.FlagHolder:
    """Defines the flag of a folder that is written; call it at import."""
    holder = flags.DEFINE_string(name, default, help_string, required=required)
    flags.register_validator(holder, _check_folder)
    return holder


def _check_folder(path: str | None) -> bool:
    # `Path` would turn "gs://bucket" into the local folder "gs:/bucket".
    if path and "://" in path:
        raise flags.ValidationError(
            "it must be a local folder; mount the bucket, or copy the run when it has ended"
        )
    if path and Path(path).exists() and not Path(path).is_dir():
        raise flags.ValidationError("it is a file: name a folder")
    return True


def _mutable(path: str) -> config_dict.ConfigDict:
    made = load_experiment(path)
    names = fields.field_names(made)
    # Before the overrides are parsed: ml_collections' own errors name neither field nor section.
    for argument in flags.FLAGS.read_flags_from_files(sys.argv[1:], force_gnu=False):
        if match := re.match(r"--?(?:no)?config\.([^=]+)", argument):
            _check_field(match[1], names)
    return config_lib.to_config_dict(made)


def _check_field(name: str, names: list[str]) -> None:
    """Refuses an override of what is no field by its whole name."""
    if name in names:
        return
    try:
        meant = fields.resolve(name, names)
    except SweepError as error:
        raise config_lib.ConfigError(str(error)) from error
    raise config_lib.ConfigError(f"the experiment has no field {name} (did you mean {meant}?)")
