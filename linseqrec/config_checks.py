"""Checks that a configuration makes of its fields, and the error that names field and value."""

import difflib
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal

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
