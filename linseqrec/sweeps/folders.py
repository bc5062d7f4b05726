"""The folder of a run, named from what it overrides."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from linseqrec.config_fields import short_name, to_text

# File systems stop at 255 bytes.
_LONGEST = 160


def folder_name(overrides: Mapping[str, Any], fields: Sequence[str]) -> str:
    """A folder's name such as "learning_rate=0.001,seed=0".

    It depends on these overrides alone, and no two share one, also where case is not told apart. A
    value with other characters than `a-z0-9._-` is spelt with `-` in their place; it, and a name
    too long for a file system, ends in a digest.

    Args:
      overrides: By dotted name.
      fields: All of the experiment's (`field_names`): they say how short a field's name can be.
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
    if plain and len(name) <= _LONGEST:
        return name
    digest = hashlib.sha256(repr(sorted(overrides.items())).encode()).hexdigest()[:10]
    return f"{name[:_LONGEST]},{digest}"
