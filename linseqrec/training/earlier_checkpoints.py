"""Checkpoints of earlier versions: what they lack, and how they hold a state's arrays.

Versions before the digests saved no `validated_step`. Versions before the parts `params` and
`buffers` saved SinkRec's buffer among the parameters, with moments of the optimizer. In other
models they took buffers for constants, and did not save them.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flax import nnx

from linseqrec.errors import FileError
from linseqrec.files import read_json

Shapes = dict[str, tuple[int, ...]]


def needs_no_digests(checkpoint: Path) -> bool:
    """Whether a version before the digests wrote a checkpoint.

    Args:
      checkpoint: Its folder.
    """
    try:
        progress = read_json(checkpoint / "progress" / "metadata", dict)
    except FileError:
        return False
    return "validated_step" not in progress


def has_no_buffers(names: Iterable[str]) -> bool:
    """Whether a checkpoint has no buffers, or is of a version that saved them as parameters.

    Args:
      names: The names of its arrays.
    """
    return not any(name.startswith("buffers/") for name in names)


def with_buffers(saved: Shapes, expected: Shapes) -> Shapes:
    """The saved shapes as the present version names them.

    Args:
      saved: Name to shape of a checkpoint's arrays.
      expected: Those of the present version.
    """
    if not saved or not has_no_buffers(saved):
        return saved
    present = dict(saved)
    for name in (name for name in expected if name.startswith("buffers/")):
        end = name.removeprefix("buffers")
        present[name] = saved.get(f"params{end}", expected[name])
        if f"params{end}" in saved:
            moved = (f"params{end}", f"/mu{end}", f"/nu{end}")
            present = {other: present[other] for other in present if not other.endswith(moved)}
    return present


def as_saved(parts: dict[str, Any], names: Iterable[str]) -> tuple[dict[str, Any], nnx.State]:
    """The parts of a state as a checkpoint has them.

    Args:
      parts: By name; `params` and `buffers` are among them.
      names: The names of the checkpoint's arrays.

    Returns:
      The parts to read, and the buffers that the checkpoint does not have.
    """
    names = set(names)
    if not has_no_buffers(names):
        return parts, nnx.State({})
    among_params, not_saved = nnx.split_state(
        parts["buffers"], lambda path, _: "/".join(["params", *map(str, path)]) in names, ...
    )
    params = nnx.merge_state(parts["params"], among_params)
    return {**parts, "params": params, "buffers": nnx.State({})}, not_saved


def as_now(parts: dict[str, Any], not_saved: nnx.State) -> dict[str, Any]:
    """The parts of a state as the present version has them.

    Args:
      parts: What was read of those that `as_saved` gave.
      not_saved: The buffers that the checkpoint does not have.
    """
    params, among_params = nnx.split_state(parts["params"], nnx.Param, ...)
    buffers = nnx.merge_state(parts["buffers"], among_params, not_saved)
    return {**parts, "params": params, "buffers": buffers}
