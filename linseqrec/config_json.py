"""Configurations as JSON, from which runs are restored: each dataclass carries its class's name."""

import dataclasses
import functools
import importlib
import json
import operator
import sys
import typing
from collections.abc import Mapping
from typing import Any

from linseqrec.config_fields import ConfigError, nearest

_CLASS = "class"


def to_json(config: Any) -> Any:
    """A configuration as plain JSON values."""
    if dataclasses.is_dataclass(config):
        cls = type(config)
        fields = {f.name: to_json(getattr(config, f.name)) for f in dataclasses.fields(config)}
        return {_CLASS: f"{cls.__module__}:{cls.__qualname__}", **fields}
    return [to_json(item) for item in config] if isinstance(config, tuple) else config


def from_json(value: Any, hint: Any, prefix: str = "", *, floats: bool = False) -> Any:
    """The inverse of `to_json`.

    A file does not choose what code is run: a class is one that `hint` admits, of the library or of
    a module that the program has imported.

    Args:
      value: What JSON gave.
      hint: The class of the configuration, or the type of the field that holds it.
      prefix: Stands before the fields' names in errors: "model.".
      floats: Whether 40 in a field of type float becomes 40.0.

    Raises:
      ConfigError: If a class is not admitted, cannot be made, or lacks a field: the file is of
        another version.
    """
    if isinstance(value, list):
        return tuple(from_json(each, hint, prefix, floats=floats) for each in value)
    if not isinstance(value, dict):
        return value
    if _CLASS not in value:
        raise ConfigError(f"{prefix}{_CLASS} is missing beside {', '.join(value)}")
    cls, fields = _find_class(value[_CLASS], hint), dict[str, Any]()
    hints = typing.get_type_hints(cls)
    for name in (name for name in value if name != _CLASS):
        if name not in hints:
            raise ConfigError(f"{cls.__name__} has no field {name!r}{nearest(name, hints)}")
        made = from_json(value[name], hints[name], f"{prefix}{name}.", floats=floats)
        whole = floats and hints[name] is float and type(made) is int
        fields[name] = float(made) if whole else made
    try:
        return cls(**fields)
    except ConfigError as error:
        raise ConfigError(f"{prefix}{error}") from error
    # TypeError: a field is missing that has no default. ValueError: a user's own model's words.
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{prefix.rstrip('.') or cls.__name__}: {error}") from error


def _find_class(named: Any, hint: Any) -> type:
    module, _, name = str(named).partition(":")
    try:
        if module.partition(".")[0] == "linseqrec":
            importlib.import_module(module)
        cls = getattr(sys.modules[module], name)
    except KeyError:
        # Python calls the experiment's file "<run_path>": no program can import that.
        flag = f"--import={'MODULE' if module == '<run_path>' else module}"
        raise ConfigError(
            f"the class {named} cannot be found: put a model of your own into a module that the "
            f"experiment's file imports, and give {flag} to programs that open its runs"
        ) from None
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"the class {named} cannot be found: {error}") from error
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise ConfigError(f"the class {named} is no dataclass")
    if not issubclass(cls, _classes(hint)):
        want = getattr(hint, "__name__", hint)
        raise ConfigError(f"the class {named} is not a subclass of {want}")
    return cls


def _classes(hint: Any) -> tuple[type, ...]:
    """The classes in a type: T and None of `T | None`, T of `tuple[T, ...]`."""
    parts = typing.get_args(hint)
    if not parts:
        return (hint,) if isinstance(hint, type) else ()
    return tuple(cls for part in parts for cls in _classes(part))


def override(config: Any, values: Mapping[str, Any]) -> Any:
    """The configuration with other values of some fields, after a round trip through JSON.

    Args:
      config: A configuration.
      values: By dotted name.

    Raises:
      ConfigError: If the configuration is invalid, or JSON cannot store and restore it: its runs
        could not continue or be evaluated.
    """
    tree = to_json(config)
    for field, value in values.items():
        *sections, last = field.split(".")
        functools.reduce(operator.getitem, sections, tree)[last] = to_json(value)
    try:
        text = json.dumps(tree, allow_nan=False)
    except (TypeError, ValueError) as error:
        want = "keep to fields of plain values and tuples of them"
        raise ConfigError(f"config.json cannot hold this experiment: {error}: {want}") from error
    # 40 and 40.0 are one configuration: its text must be one, too.
    return from_json(json.loads(text), type(config), floats=True)
