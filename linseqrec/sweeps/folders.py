"""The name of a run's folder, made from the run's overrides."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from linseqrec.config_fields import short_name, to_text

# File systems allow names of 255 bytes. A digest of 11 characters follows a name of this length.
_MAX_LENGTH = 160


def folder_name(overrides: Mapping[str, Any], fields: Sequence[str]) -> str:
    """The name of a run's folder, such as "learning_rate=0.001,seed=0".

    Different overrides have different names, even on file systems that ignore case. The name has
    `-` for each character of a value that is not in `A-Za-z0-9._+-`. If a value has a character
    that is not in `a-z0-9._-`, or if the name is too long, the name ends in a digest.

    Args:
      overrides: The run's values by dotted field name.
      fields: The names of all fields of the experiment (`field_names`), to shorten them.
    """
    texts = {
        field: list(map(to_text, value if isinstance(value, tuple) else (value,)))
        for field, value in overrides.items()
    }
    name = ",".join(
        # A comma joins fields, so a `+` joins what a list holds.
        f"{short_name(field, fields)}={re.sub(r'[^A-Za-z0-9._+-]', '-', '+'.join(parts))}"
        for field, parts in texts.items()
    )
    plain = all(re.fullmatch(r"[a-z0-9._-]*", part) for parts in texts.values() for part in parts)
    if plain and len(name) <= _MAX_LENGTH:
        return name
    digest = hashlib.sha256(repr(sorted(overrides.items())).encode()).hexdigest()[:10]
    return f"{name[:_MAX_LENGTH]},{digest}"
