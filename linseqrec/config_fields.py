"""A configuration's fields: checks of their values, their names, and how text and JSON set them.

A field goes by its dotted name ("training.seed") or an end of it that is no other's ("seed"). A
list is written "all,none", or "[all,none]" where commas separate whole values.
"""

import dataclasses
import difflib
import functools
import importlib
import json
import math
import operator
import sys
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from absl import flags

from linseqrec.errors import UserError


class ConfigError(UserError, ValueError):
    """A configuration that cannot be: the message names the field and the values it takes."""


def check_fields(
    config: Any,
    prefix: str = "",
    *,
    counts: Iterable[str] = (),
    rates: Iterable[str] = (),
    positive: Iterable[str] = (),
    not_negative: Iterable[str] = (),
) -> None:
    """Checks fields of a `Literal` type, or of a tuple of one, and the fields named.

    Args:
      config: A dataclass.
      prefix: Stands before the fields' names in errors: "model.".
      counts: Fields that must be at least 1.
      rates: Fields that must be in [0, 1).
      positive: Fields that must be above 0.
      not_negative: Fields that must be at least 0.

    Raises:
      ConfigError: If a field holds another value; its name stands first.
    """
    for name, hint in typing.get_type_hints(type(config)).items():
        several = typing.get_origin(hint) is tuple
        choice = typing.get_args(hint)[0] if several else hint
        if typing.get_origin(choice) is Literal:
            value, choices = getattr(config, name), typing.get_args(choice)
            for each in value if several else (value,):
                want = f"one of {', '.join(map(repr, choices))}{nearest(str(each), choices)}"
                require(each in choices, f"{prefix}{name}", each, want)
    for names, holds, want in (
        (counts, lambda value: value >= 1, "at least 1"),
        (rates, lambda value: 0 <= value < 1, "at least 0 and below 1"),
        (positive, lambda value: value > 0, "above 0"),
        (not_negative, lambda value: value >= 0, "at least 0"),
    ):
        for name in names:
            value = getattr(config, name)
            require(holds(value), f"{prefix}{name}", value, want)


def require(holds: bool, field: str, value: object, want: str) -> None:
    """Refuses a field's value.

    Raises:
      ConfigError: If `holds` is false.
    """
    if not holds:
        raise ConfigError(f"{field} is {value!r}: it must be {want}")


def choose(options: Mapping[str, Any], name: str) -> Any:
    """The option of that name.

    Raises:
      ConfigError: If there is none, with the names that there are.
    """
    if name not in options:
        raise ConfigError(f"no {name!r}: choose {', '.join(options)}{nearest(name, options)}")
    return options[name]


def nearest(name: str, known: Iterable[Any]) -> str:
    """A question after the nearest of the known names, to append; empty where none is near."""
    close = difflib.get_close_matches(name, list(map(str, known)), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


# Each dataclass's JSON names its class, so that a run is restored from its workdir alone.
_CLASS = "class"
# How a value is read from text, and what it must be.
_KINDS: dict[Any, tuple[flags.ArgumentParser, str]] = {
    bool: (flags.BooleanParser(), "true or false"),
    int: (flags.IntegerParser(), "a whole number"),
    float: (flags.FloatParser(), "a finite number"),
    str: (flags.ArgumentParser(), "text"),
}


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """A configuration as {"optimizer.learning_rate": 0.001, ...}, in the order of its fields.

    A section ("optimizer") has the name of its class for a value.
    """
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        name, value = f"{prefix}{field.name}", getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            flat |= {name: type(value).__name__} | flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def differences(old: Any, new: Any) -> dict[str, str]:
    """The fields in which two configurations differ, with a line each: "a.b: old -> new"."""
    before, after = flatten(old), flatten(new)
    return {
        key: f"{key}: {before.get(key, '(absent)')!r} -> {after.get(key, '(absent)')!r}"
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key)
    }


def field_names(config: Any) -> list[str]:
    """The dotted names of the fields that are no sections, in order."""
    names = list(flatten(config))
    return [name for name in names if not any(other.startswith(f"{name}.") for other in names)]


def resolve(name: str, fields: Sequence[str]) -> str:
    """The one of the fields (`field_names`) that a name, or the end of one, means.

    Raises:
      ConfigError: If it means none or several, with the candidates.
    """
    found = _meant(name, fields)
    if len(found) > 1:
        raise ConfigError(f"{name} may be {' or '.join(found)}: give more of the name")
    if section := [field for field in fields if field.startswith(f"{name}.") and not found]:
        raise ConfigError(f"{name} is a section: name a field of it, as {section[0]}")
    if not found:
        close = nearest(name, [end for field in fields for end in _ends(field)])
        raise ConfigError(f"the experiment has no field {name}{close}")
    return found[0]


def short_name(field: str, fields: Sequence[str]) -> str:
    """The shortest end of a field's name that means this field alone."""
    return next(end for end in _ends(field) if _meant(end, fields) == [field])


def _meant(name: str, fields: Sequence[str]) -> list[str]:
    # "model" is a section: it does not mean "mesh.model".
    if name in fields or any(field.startswith(f"{name}.") for field in fields):
        return [name] if name in fields else []
    return [field for field in fields if name in _ends(field)]


def _ends(field: str) -> list[str]:
    parts = field.split(".")
    return [".".join(parts[start:]) for start in reversed(range(len(parts)))]


def assignment(text: str, fields: Sequence[str]) -> tuple[str, str]:
    """The field and the value of "FIELD=VALUE".

    Raises:
      ConfigError: If the text is none, or there is no such field.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"{text!r}: write FIELD=VALUE")
    return resolve(name, fields), value


def parse(text: str, field: str, config: Any) -> Any:
    """The value of a field that a text stands for, by the field's type.

    Raises:
      ConfigError: If the text is no value of that type.
    """
    *owners, last = field.split(".")
    hint = typing.get_type_hints(type(functools.reduce(getattr, owners, config)))[last]
    if types.NoneType in typing.get_args(hint):  # T | None
        if text.lower() == "none":
            return None
        hint = next(kind for kind in typing.get_args(hint) if kind is not types.NoneType)
    several = typing.get_origin(hint) is tuple
    kind = typing.get_args(hint)[0] if several else hint
    # Which texts a choice admits, its configuration checks.
    kind = str if typing.get_origin(kind) is typing.Literal else kind
    if kind not in _KINDS:
        raise ConfigError(
            f"{field} takes no text: its type is {hint}, not a number, bool, str or tuple[T, ...]"
        )
    parser, want = _KINDS[kind]
    elements = [each for each in text.removeprefix("[").removesuffix("]").split(",") if each]
    try:
        values = tuple(map(parser.parse, elements if several else [text]))
        if not all(math.isfinite(value) for value in values if isinstance(value, float)):
            raise ValueError(text)
    except ValueError as error:
        wanted = f"a list, each {want}" if several else want
        raise ConfigError(f"{field} is {text!r}: it must be {wanted}") from error
    return values if several else values[0]


def to_text(value: Any) -> str:
    """The inverse of `parse`."""
    if isinstance(value, tuple):
        return ",".join(map(to_text, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def to_json(config: Any) -> Any:
    """A configuration as plain JSON values; each dataclass carries its class's name."""
    if dataclasses.is_dataclass(config):
        cls = type(config)
        fields = {f.name: to_json(getattr(config, f.name)) for f in dataclasses.fields(config)}
        return {_CLASS: f"{cls.__module__}:{cls.__qualname__}", **fields}
    return [to_json(item) for item in config] if isinstance(config, tuple) else config


def from_json(value: Any, prefix: str = "", *, hint: Any = None, floats: bool = False) -> Any:
    """The inverse of `to_json`.

    A file does not choose what code is run: a class is one that its field's type admits, of the
    library or of a module that the program has imported.

    Args:
      value: What JSON gave.
      prefix: Stands before the fields' names in errors: "model.".
      hint: The type of the field that holds the value; None for a class of the library.
      floats: Whether 40 in a field of type float becomes 40.0.

    Raises:
      ConfigError: If a class is another or cannot be made, or has no such field: the file is of
        another version.
    """
    if isinstance(value, list):
        return tuple(from_json(each, prefix, hint=hint, floats=floats) for each in value)
    if not isinstance(value, dict):
        return value
    if _CLASS not in value:
        raise ConfigError(f"{prefix}{_CLASS} is missing beside {', '.join(value)}")
    cls = _find_class(value[_CLASS], hint)
    hints, fields = typing.get_type_hints(cls), {}
    for key in (key for key in value if key != _CLASS):
        if key not in hints:
            raise ConfigError(f"{cls.__name__} has no field {key!r}{nearest(key, hints)}")
        made = from_json(value[key], f"{prefix}{key}.", hint=hints[key], floats=floats)
        if not _has_type(made, hints[key]):
            hint_name = getattr(hints[key], "__name__", hints[key])
            raise ConfigError(f"{prefix}{key} is {made!r}: its type is {hint_name}")
        fields[key] = float(made) if floats and hints[key] is float else made
    try:
        return cls(**fields)
    except ConfigError as error:
        raise ConfigError(f"{prefix}{error}") from error
    # TypeError: a field is missing that has no default. ValueError: a user's own model's words.
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{prefix.rstrip('.') or cls.__name__}: {error}") from error


def _has_type(value: Any, hint: Any) -> bool:
    """Whether JSON gave a value of a field's type. A type that is not plain admits any value."""
    kind, parts = typing.get_origin(hint), typing.get_args(hint)
    if kind is typing.Literal:  # which choice it is, the configuration checks
        return type(value) in map(type, parts)
    if kind in (typing.Union, types.UnionType):
        return any(_has_type(value, part) for part in parts)
    if kind is tuple and isinstance(value, tuple):
        hints = parts[:1] * len(value) if parts[-1] is ... else parts
        return len(hints) == len(value) and all(map(_has_type, value, hints))
    if hint is float:
        return type(value) in (int, float) and math.isfinite(value)
    if hint in (bool, int, str, types.NoneType):
        return type(value) is hint
    return not (kind is tuple or dataclasses.is_dataclass(hint)) or isinstance(value, kind or hint)


def _find_class(named: Any, hint: Any) -> type:
    module, _, name = str(named).partition(":")
    try:
        if _is_of_library(module):
            importlib.import_module(module)
        cls = getattr(sys.modules[module], name)
    except KeyError:
        raise ConfigError(
            f"the class {named} cannot be found: put a model of your own into a module that the "
            f"experiment's file imports, and give --import={module} to programs that open its runs"
        ) from None
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"the class {named} cannot be found: {error}") from error
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise ConfigError(f"the class {named} is no dataclass")
    admitted = _is_of_library(module) if hint is None else issubclass(cls, _classes(hint))
    if not admitted:
        want = "a class of linseqrec" if hint is None else getattr(hint, "__name__", hint)
        raise ConfigError(f"the class {named} is not {want}, which its field holds")
    return cls


def _is_of_library(module: str) -> bool:
    return module.partition(".")[0] == "linseqrec"


def _classes(hint: Any) -> tuple[type, ...]:
    """The classes in a type: T and None of `T | None`, T of `tuple[T, ...]`."""
    parts = typing.get_args(hint)
    if not parts:
        return (hint,) if isinstance(hint, type) else ()
    return tuple(cls for part in parts for cls in _classes(part))


def override(config: Any, values: Mapping[str, Any]) -> Any:
    """The configuration with other values of some fields, just as its JSON gives it back.

    Args:
      config: A configuration.
      values: By dotted name.

    Raises:
      ConfigError: If they make a configuration that cannot be, or that JSON does not give back, so
        that no run of it could go on or be evaluated.
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
    return from_json(json.loads(text), floats=True)
