"""The `--config` flag: an experiment's file, whose fields `--config.FIELD=VALUE` overrides."""

import dataclasses
import runpy
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_dict, config_flags

from linseqrec import config as config_lib


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


def _mutable(path: str) -> config_dict.ConfigDict:
    return config_lib.to_config_dict(load_experiment(path))
