"""A configuration's fields by name: the dotted name ("training.seed"), or an end of it ("seed").

An end means a field if it is the end of no other field's name.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from linseqrec.config_fields import ConfigError, nearest


def _fields(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The fields in order, by dotted name; those of a section follow it."""
    for field in dataclasses.fields(config):
        name, value = f"{prefix}{field.name}", getattr(config, field.name)
        yield name, value
        if dataclasses.is_dataclass(value):
            yield from _fields(value, f"{name}.")


def flatten(config: Any) -> dict[str, Any]:
    """A configuration as {"optimizer.learning_rate": 0.001, ...}, in the order of its fields.

    A section ("optimizer") has the name of its class for a value.
    """
    return {
        name: type(value).__name__ if dataclasses.is_dataclass(value) else value
        for name, value in _fields(config)
    }


def field_names(config: Any) -> list[str]:
    """The dotted names of the fields that are no sections, in order."""
    return [name for name, value in _fields(config) if not dataclasses.is_dataclass(value)]


def differences(old: Any, new: Any) -> dict[str, str]:
    """The fields in which two configurations differ, with a line each: "a.b: old -> new"."""
    before, after = flatten(old), flatten(new)
    return {
        key: f"{key}: {before.get(key, '(absent)')!r} -> {after.get(key, '(absent)')!r}"
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key)
    }


def resolve(name: str, fields: Sequence[str]) -> str:
    """The one of the fields (`field_names`) that a name, or the end of one, means.

    Raises:
      ConfigError: If it means none or several, with the candidates.
    """
    found = _meant(name, fields)
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"{name} may be {' or '.join(found)}: give more of the name")
    if section := [field for field in fields if field.startswith(f"{name}.")]:
        raise ConfigError(f"{name} is a section: name a field of it, as {section[0]}")
    close = nearest(name, [end for field in fields for end in _ends(field)])
    raise ConfigError(f"the experiment has no field {name}{close}")


def short_name(field: str, fields: Sequence[str]) -> str:
    """The shortest end of a field's name that means this field alone."""
    return next(end for end in _ends(field) if _meant(end, fields) == [field])


def assignment(text: str, fields: Sequence[str]) -> tuple[str, str]:
    """The field and the value of "FIELD=VALUE".

    Raises:
      ConfigError: If the text is none, or there is no such field.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"{text!r}: write FIELD=VALUE")
    return resolve(name, fields), value


def _meant(name: str, fields: Sequence[str]) -> list[str]:
    # "model" is a section: it does not mean "mesh.model".
    if name in fields or any(field.startswith(f"{name}.") for field in fields):
        return [name] if name in fields else []
    return [field for field in fields if name in _ends(field)]


def _ends(field: str) -> list[str]:
    parts = field.split(".")
    return [".".join(parts[start:]) for start in reversed(range(len(parts)))]
