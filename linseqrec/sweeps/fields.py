"""An experiment's fields by the end of their names, and their values as text."""

import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from linseqrec import config as config_lib
from linseqrec.errors import SweepError


def field_names(experiment: config_lib.Experiment) -> list[str]:
    """The dotted names of the fields that hold values: "optimizer.learning_rate", in order."""
    names = list(config_lib.flatten(experiment))
    return [name for name in names if not any(other.startswith(f"{name}.") for other in names)]


def resolve(name: str, fields: Sequence[str]) -> str:
    """The field that a name or the end of one means: "seed" is "training.seed".

    Args:
      name: A dotted name, or its last parts.
      fields: Those there are (`field_names`).

    Raises:
      SweepError: If no field or several are called so, with the candidates.
    """
    found = _called(name, fields)
    if len(found) > 1:
        raise SweepError(f"{name} may be {' or '.join(found)}: give more of the name")
    if not found:
        close = difflib.get_close_matches(
            name.split(".")[-1], {field.split(".")[-1] for field in fields}, n=3
        )
        nearest = [field for last in close for field in _called(last, fields)]
        hint = f" (did you mean {' or '.join(nearest)}?)" if nearest else ""
        raise SweepError(f"the experiment has no field {name}{hint}")
    return found[0]


def short_name(field: str, fields: Sequence[str]) -> str:
    """The shortest end of a field's name that means this field alone."""
    parts = field.split(".")
    ends = (".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1))
    return next(end for end in ends if _called(end, fields) == [field])


def _called(name: str, fields: Sequence[str]) -> list[str]:
    if name in fields:
        return [name]
    # "model" is a part of the configuration: it does not mean "mesh.model".
    if any(field.startswith(f"{name}.") for field in fields):
        return []
    return [field for field in fields if field.endswith(f".{name}")]


def parse(text: str, field: str, experiment: config_lib.Experiment) -> Any:
    """A field's value from text, by the field's type; `+` joins the elements of a tuple.

    Raises:
      SweepError: If the text is no value of that type.
    """
    *owners, last = field.split(".")
    owner: Any = experiment
    for part in owners:
        owner = getattr(owner, part)
    hint = typing.get_type_hints(type(owner))[last]
    try:
        return _parse(text, hint)
    except ValueError as error:
        name = getattr(_plain(hint), "__name__", str(hint))
        raise SweepError(f"{field} is {text!r}: it must be a value of type {name}") from error


def _parse(text: str, hint: Any) -> Any:
    hint = _plain(hint)
    if typing.get_origin(hint) is tuple:
        element = typing.get_args(hint)[0]
        return tuple(_parse(part, element) for part in text.split("+"))
    # Which texts a choice admits, the configuration says itself.
    if typing.get_origin(hint) is Literal or hint is str:
        return text
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    value = hint(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _plain(hint: Any) -> Any:
    """T of `T | None`."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next(kind for kind in typing.get_args(hint) if kind is not types.NoneType)
    return hint


def to_text(value: Any) -> str:
    """The inverse of `parse`."""
    if isinstance(value, tuple):
        return "+".join(map(to_text, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def to_flags(values: Mapping[str, Any]) -> list[str]:
    """Fields and values as the flags of `launch.train`; a tuple is one flag for each element."""
    return [
        f"--config.{field}={to_text(part)}"
        for field, value in values.items()
        for part in (value if isinstance(value, tuple) else (value,))
    ]


def override(experiment: config_lib.Experiment, values: Mapping[str, Any]) -> config_lib.Experiment:
    """The experiment with other values of some fields, checked as those of flags are.

    Raises:
      SweepError: If they make a configuration that cannot be.
    """
    changed = config_lib.to_config_dict(experiment)
    changed.update_from_flattened_dict(dict(values))
    try:
        return config_lib.from_config_dict(changed, experiment)
    except config_lib.ConfigError as error:
        asked = ", ".join(f"{field}={to_text(value)}" for field, value in values.items())
        raise SweepError(f"{asked}: {error}") from error
