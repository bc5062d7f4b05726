"""Flags of several programs: `--config` with its overrides, folders, and `--data`."""

import inspect
import re
import runpy
from pathlib import Path
from typing import Any

from absl import flags

from linseqrec.config import Experiment
from linseqrec.config_fields import ConfigError, assignment, field_names, nearest, parse, to_text
from linseqrec.config_json import override

# absl counts the flags of the functions below as the caller's, so its `--help` shows them.
flags.disclaim_key_flags()

# Where `split_overrides` puts all `--config.FIELD=VALUE`.
_OVERRIDES = "config.FIELD"


def define_config() -> None:
    """Defines `--config=FILE:NAME` and its overrides; call it at import."""
    flags.DEFINE_string("config", None, "Experiment file, or FILE:NAME for an experiment in it.")
    define_overrides("VALUE of a field of the experiment, as in --config.training.seed=1")


def define_overrides(help_string: str) -> None:
    """Defines `--config.FIELD=VALUE`; call it at import."""
    flags.DEFINE_multi_string(_OVERRIDES, [], help_string)


def split_overrides(argv: list[str]) -> list[str]:
    """Rewrites each `--config.seed=1` as `--config.FIELD=seed=1`, one flag of absl for all fields.

    Like any flag of absl, an override may also be written `--config.seed 1`, and that of a bool
    `--config.model.gate` or `--noconfig.model.gate`. A field without a value stays one: only a
    bool can be set so (`overrides`).
    """
    if _OVERRIDES not in flags.FLAGS:
        return argv
    rest, split = flags.FLAGS.read_flags_from_files(argv, force_gnu=False), []
    while rest:
        argument = rest.pop(0)
        if match := re.fullmatch(r"--?(no)?config\.([^=]+)(=.*)?", argument, re.DOTALL):
            negated, field, value = match.groups(default="")
            if negated:
                value = value or "=false"
            elif not value and rest and not re.match("--?[A-Za-z]", rest[0]):
                value = f"={rest.pop(0)}"
            argument = f"--{_OVERRIDES}={field}{value}"
        split.append(argument)
    return split


def overrides(experiment: Experiment) -> dict[str, Any]:
    """The values of the fields that the flags override, by dotted name; the last one counts.

    Raises:
      ConfigError: If the experiment has no such field, the field takes no such value, or a list is
        given twice.
    """
    names, values = field_names(experiment), dict[str, Any]()
    for given in flags.FLAGS[_OVERRIDES].value or ():
        field, text = assignment(given if "=" in given else f"{given}=true", names)
        value = parse(text, field, experiment)
        if "=" not in given and not isinstance(value, bool):
            raise ConfigError(f"{field} has no value: write --config.{field}=VALUE")
        if field in values and isinstance(value, tuple):
            both = to_text(values[field] + value)
            raise ConfigError(f"{field} is given twice: write --config.{field}={both} for a list")
        values[field] = value
    return values


def experiment() -> Experiment:
    """The experiment that the parsed flags ask for.

    Raises:
      ConfigError: If --config is missing, or the experiment is invalid.
    """
    if not flags.FLAGS.config:
        raise ConfigError("give an experiment: --config=experiments/FILE.py:NAME")
    template = load_experiment(flags.FLAGS.config)
    return override(template, overrides(template))


def load_experiment(experiment: str | Path) -> Experiment:
    """What `get_config` of an experiment file returns.

    Args:
      experiment: FILE, or FILE:NAME for `get_config(NAME)`.

    Raises:
      ConfigError: If there is no such file, or it defines no experiment of that name.
    """
    file, colon, name = str(experiment).partition(":")
    if not Path(file).is_file():
        others = map(str, Path(file).parent.glob("*.py"))
        raise ConfigError(f"no experiment file {file}{nearest(file, others)}")
    names = [name] if colon else []
    try:
        module = runpy.run_path(file)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error
    except ModuleNotFoundError as error:
        raise ConfigError(f"{file}: {error} (is its folder below PYTHONPATH?)") from error
    if "get_config" not in module:
        raise ConfigError(f"{file} defines no get_config(): see experiments/quick.py")
    signature = inspect.signature(module["get_config"])
    try:
        signature.bind(*names)
    except TypeError as error:
        raise ConfigError(f"{experiment}: get_config{signature}: {error}") from error
    try:
        made = module["get_config"](*names)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error
    if not isinstance(made, Experiment):
        raise ConfigError(f"{file}: get_config() must return an Experiment")
    return made


def define_data() -> flags.FlagHolder[str]:
    """Defines `--data`, for programs that read a run's data set again; call it at import."""
    return flags.DEFINE_string(
        "data", "", "Folder of the run's data set; unset: where it was when the run was started."
    )


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
    try:
        if path and Path(path).exists() and not Path(path).is_dir():
            raise flags.ValidationError("it is a file: name a folder")
    except OSError as error:
        raise flags.ValidationError(f"{error.strerror}: name another folder") from error
    if path and Path(path).is_symlink() and not Path(path).exists():
        raise flags.ValidationError(f"it is a link to {Path(path).readlink()}, which is not there")
    return True
