"""Arrays of a checkpoint, written and read without a second copy of all of them in memory."""

import gc
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp

Tree = TypeVar("Tree")

# Larger states are written before training goes on, on a CPU: the step could not write into arrays
# that are still read, and would copy them.
_BACKGROUND_BYTES = 2**28
# Arrays of so many bytes are read at once; one array may have more.
_READ_AT_ONCE = 2**28


def fits_background(state: Any) -> bool:
    """Whether a state is small enough to be written while training goes on."""
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    return jax.default_backend() != "cpu" or size <= _BACKGROUND_BYTES


def read(folder: Path, target: Tree) -> Tree:
    """Reads arrays, a few large ones at a time.

    Args:
      folder: Where Orbax has written a state.
      target: `jax.ShapeDtypeStruct` for each array, a part of those in the folder.
    """
    leaves, structure = jax.tree.flatten(target)
    arrays: dict[int, Any] = {}
    groups = _groups([leaf.size * leaf.dtype.itemsize for leaf in leaves])
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        for group in groups:
            chosen = [
                leaf if index in group else ocp.PLACEHOLDER for index, leaf in enumerate(leaves)
            ]
            item = jax.tree.unflatten(structure, chosen)
            arguments = ocp.args.PyTreeRestore(
                item=item,
                # Not strict about shapes: they may differ by a mesh's padding.
                restore_args=ocp.checkpoint_utils.construct_restore_args(item, strict=False),
                partial_restore=True,
            )
            restored = jax.tree.leaves(reader.restore(folder, args=arguments))
            arrays |= {index: restored[index] for index in group}
            if len(groups) > 1:
                # Orbax leaves what it has read in reference cycles.
                gc.collect()
    return jax.tree.unflatten(structure, [arrays[index] for index in range(len(leaves))])


def _groups(sizes: list[int]) -> list[list[int]]:
    """Indices of arrays, in groups of at most `_READ_AT_ONCE` bytes or of one array."""
    groups: list[list[int]] = []
    room = 0
    for index in sorted(range(len(sizes)), key=sizes.__getitem__):
        if not groups or sizes[index] > room:
            groups.append([])
            room = _READ_AT_ONCE
        groups[-1].append(index)
        room -= sizes[index]
    return groups
