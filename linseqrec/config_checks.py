"""What every configuration is held to when it is made, on a command line or in Python."""

import difflib
import typing
from collections.abc import Iterable
from typing import Any, Literal

from linseqrec.errors import UserError


class ConfigError(UserError, ValueError):
    """A configuration that cannot be: says which field, and what it wants."""


def check_fields(
    config: Any, prefix: str = "", *, counts: Iterable[str] = (), rates: Iterable[str] = ()
) -> None:
    """Checks a configuration's choices (fields of a `Literal` type) and the fields named.

    Args:
      config: A dataclass.
      prefix: What stands before the fields' names: "data.".
      counts: Fields that must be at least 1.
      rates: Fields that must be in [0, 1).

    Raises:
      ConfigError: If a field holds another value; its name stands first.
    """
    for name, hint in typing.get_type_hints(type(config)).items():
        if typing.get_origin(hint) is Literal:
            value, choices = getattr(config, name), typing.get_args(hint)
            want = f"one of {', '.join(map(repr, choices))}{nearest(str(value), choices)}"
            require(value in choices, f"{prefix}{name}", value, want)
    for name in counts:
        value = getattr(config, name)
        require(value >= 1, f"{prefix}{name}", value, "at least 1")
    for name in rates:
        value = getattr(config, name)
        require(0 <= value < 1, f"{prefix}{name}", value, "at least 0 and below 1")


def require(holds: bool, field: str, value: object, want: str) -> None:
    """Refuses a field's value.

    Raises:
      ConfigError: If what is wanted does not hold.
    """
    if not holds:
        raise ConfigError(f"{field} is {value!r}: it must be {want}")


def nearest(name: str, known: Iterable[Any]) -> str:
    """A question after the nearest of the known names, to append; empty where none is near."""
    close = difflib.get_close_matches(name, list(map(str, known)), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
