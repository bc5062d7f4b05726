"""A configuration's fields: the values that they hold, and their names.

A field holds values of its type, within the limits that the type declares. A text stands for a
value wherever a field is set: "3", "1e-3", "true", "none"; "all,none" or "[all,none]" for a list.

A field's name is dotted ("training.seed"). A suffix of it ("seed") names the field if no other
field's name ends in it.
"""

import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

from absl import flags

from linseqrec.errors import UserError


class ConfigError(UserError, ValueError):
    """An invalid configuration. The message names the field and the values that it takes."""


class Limit(NamedTuple):
    """A limit on a number, in words and as a test; it stands in the type of a field."""

    want: str
    holds: Callable[[float], bool]

    def __repr__(self) -> str:
        return self.want


def at_least(minimum: float) -> Limit:
    """The limit of numbers that are not below `minimum`."""
    return Limit(f"at least {minimum}", lambda value: value >= minimum)


Count = Annotated[int, at_least(1)]
CountOrZero = Annotated[int, at_least(0)]
NotNegative = Annotated[float, at_least(0)]
Positive = Annotated[float, Limit("above 0", lambda value: value > 0)]
Rate = Annotated[float, Limit("at least 0 and below 1", lambda value: 0 <= value < 1)]
Probability = Annotated[float, Limit("a probability, from 0 to 1", lambda value: 0 <= value <= 1)]

# For each plain type: the parser of a text or JSON value, and the words for its values in errors.
_PLAIN: dict[Any, tuple[flags.ArgumentParser, str]] = {
    bool: (flags.BooleanParser(), "true or false"),
    int: (flags.IntegerParser(), "a whole number"),
    float: (flags.FloatParser(), "a finite number"),
    str: (flags.ArgumentParser(), "text"),
}


class Config:
    """Base of all configurations, which are frozen dataclasses: converts and checks their fields.

    A configuration whose fields depend on each other checks that in its own `__post_init__`, after
    `super().__post_init__()`.
    """

    def __post_init__(self) -> None:
        convert_fields(self)


def convert_fields(config: Any, prefix: str = "") -> None:
    """Converts the fields of a configuration, and of its sections, to their types.

    Args:
      config: A dataclass.
      prefix: Stands before the fields' names in errors: "model.".

    Raises:
      ConfigError: If a field cannot hold its value.
    """
    for name, hint in field_types(config.__class__).items():
        # A field that the configuration computes itself may have no value yet.
        if hasattr(config, name):
            value = getattr(config, name)
            converted = convert(value, hint, f"{prefix}{name}")
            if converted is not value:
                object.__setattr__(config, name, converted)  # Past the dataclass, which is frozen.


@functools.cache
def field_types(cls: type) -> dict[str, Any]:
    """The types of a class's fields and class attributes by name, with their limits."""
    return typing.get_type_hints(cls, include_extras=True)


def convert(value: Any, hint: Any, field: str) -> Any:
    """The value that a field of a type holds when it is set to `value`.

    A type of another kind than the ones below, such as `int | str`, admits any value.

    Raises:
      ConfigError: If it cannot hold the value; `field` is the field's name.
    """
    kind, parts = typing.get_origin(hint), typing.get_args(hint)
    text = isinstance(value, str)
    if kind is Annotated:
        converted = convert(value, parts[0], field)
        for limit in (part for part in parts if isinstance(part, Limit)):
            require(limit.holds(converted), field, converted, limit.want)
        return converted
    if len(parts) == 2 and types.NoneType in parts:  # T | None
        if value is None or (text and value.lower() == "none"):
            return None
        try:
            return convert(value, parts[0] if parts[1] is types.NoneType else parts[1], field)
        except ConfigError as error:
            raise ConfigError(f"{error}, or none") from error
    if kind is Literal:
        choices = f"one of {', '.join(map(repr, parts))}{nearest(str(value), parts)}"
        require(value in parts, field, value, choices)
        return value
    if kind is tuple and parts[-1] is ...:
        if text:
            value = [each for each in value.removeprefix("[").removesuffix("]").split(",") if each]
        require(isinstance(value, list | tuple), field, value, "a list")
        return tuple(convert(each, parts[0], field) for each in value)
    if hint in _PLAIN:
        return _convert_plain(value, hint, field)
    cls = kind or hint
    if isinstance(cls, type) and cls not in (Any, types.UnionType):
        # Other classes take all but text: from JSON, a `list` field gets a tuple.
        strict = text or cls is tuple or dataclasses.is_dataclass(cls) or issubclass(cls, Config)
        want = f"a {cls.__module__}.{cls.__qualname__}".replace("builtins.", "")
        require(not strict or isinstance(value, cls), field, value, want)
    if dataclasses.is_dataclass(value):
        convert_fields(value, f"{field}.")
    return value


def _convert_plain(value: Any, hint: type, field: str) -> Any:
    parser, want = _PLAIN[hint]
    try:
        converted: Any = parser.parse(value)
        fits = hint is not float or math.isfinite(converted)
    except (TypeError, ValueError, OverflowError):
        fits = False
    require(fits, field, value, want)
    # 40 in a field of type float stays 40: digests of runs on disk are of that text.
    return value if hint is float and type(value) is int else converted


def parse(text: str, field: str, config: Any) -> Any:
    """The value that a text stands for in the field of that dotted name.

    Raises:
      ConfigError: If it stands for none.
    """
    return convert(text, _type_of(field, config), field)


def _type_of(field: str, config: Any) -> Any:
    *sections, name = field.split(".")
    section = functools.reduce(getattr, sections, config)
    return field_types(section.__class__)[name]


def admitted(field: str, config: Any) -> str:
    """The values that the field of that dotted name takes, in words; empty for a section."""
    return _in_words(_type_of(field, config))


def _in_words(hint: Any) -> str:
    kind, parts = typing.get_origin(hint), typing.get_args(hint)
    if kind is Annotated:
        limits = [part.want for part in parts if isinstance(part, Limit)]
        return ", ".join([_in_words(parts[0]), *limits])
    if types.NoneType in parts:
        return ", or ".join([_in_words(p) for p in parts if p is not types.NoneType] + ["none"])
    if kind is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if kind is tuple and parts[-1] is ...:
        return f"a list, each {_in_words(parts[0])}"
    return _PLAIN[hint][1] if hint in _PLAIN else ""


def to_text(value: Any) -> str:
    """The inverse of `parse`."""
    if isinstance(value, tuple):
        return ",".join(map(to_text, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


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


# ---------------------------------------------------------------------------- names
def _fields(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The fields in order, by dotted name; those of a section follow it."""
    for field in dataclasses.fields(config):
        name, value = f"{prefix}{field.name}", getattr(config, field.name)
        yield name, value
        if dataclasses.is_dataclass(value):
            yield from _fields(value, f"{name}.")


def flatten(config: Any) -> dict[str, Any]:
    """A configuration as {"optimizer.learning_rate": 0.001, ...}, in the order of its fields.

    A section ("optimizer") has the name of its class for a value (`class_name`).
    """
    return {
        name: class_name(value) if dataclasses.is_dataclass(value) else value
        for name, value in _fields(config)
    }


def class_name(config: Any) -> str:
    """The name of a configuration's class, with its module if that is not the library's."""
    cls = type(config)
    own = cls.__module__.startswith("linseqrec.")
    return cls.__qualname__ if own else f"{cls.__module__}:{cls.__qualname__}"


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
    """The field among `fields` whose dotted name is `name` or ends in it.

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
