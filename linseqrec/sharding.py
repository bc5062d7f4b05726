"""Devices as a mesh, and where arrays stand on it: rules by name.

The mesh has three axes. Over `data` the rows of a batch are divided, over `sequence` the slots of
each row, and over `model` the rows of the item table, the one array that grows with the catalogue;
all else stands on every device. A table that divides unevenly is padded with zeros up to the next
multiple: whoever reads a placed one is told the number of items, and a checkpoint notes the shapes
without the padding, so that it fits any mesh.
"""

import dataclasses
import functools
import math
import re
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from linseqrec.errors import UserError
from linseqrec.mesh_axes import DATA, MODEL, SEQUENCE
from linseqrec.models.weights import parameter_path

Tree = TypeVar("Tree")

# The first that matches the end of an array's name ("params/embedding/table") places it. The
# optimizer's moments bear their parameter's name, and so stand beside it.
RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"(^|/)embedding/table$", PartitionSpec(MODEL)),
    (r"", PartitionSpec()),
)


class MeshError(UserError, ValueError):
    """A mesh that these devices, or this batch, cannot be laid out on."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many devices share the work, and how.

    Attributes:
      data: Parts that a batch's rows are divided into; -1: as many as the devices allow.
      model: Parts that the item table's rows are divided into.
      sequence: Parts that the slots of each row are divided into, for histories whose activations
        do not fit on a device.
    """

    data: int = -1
    model: int = 1
    sequence: int = 1


def make_mesh(config: MeshConfig) -> Mesh | None:
    """The mesh of a configuration, over the devices of all processes.

    Returns:
      The mesh, `data` by `sequence` by `model`; None for one device, which needs none.

    Raises:
      MeshError: If the devices do not suffice or do not divide, or would be left out in a run of
        several processes.
    """
    count, each = jax.device_count(), config.sequence * config.model
    data = count // each if config.data == -1 and each > 0 else config.data
    used = data * each
    idle = config.data == -1 or jax.process_count() > 1
    if min(data, config.sequence, config.model) < 1 or used > count or (idle and used != count):
        raise MeshError(
            f"mesh.data={config.data}, mesh.sequence={config.sequence}, mesh.model={config.model} "
            f"cannot be laid out on {count} device{'s' if count > 1 else ''}: want their product "
            f"to be {'' if idle else 'at most '}{count}, or mesh.data=-1 and a mesh.sequence * "
            "mesh.model that divides it"
        )
    if used == 1:
        return None
    return jax.make_mesh(
        (data, config.sequence, config.model),
        (DATA, SEQUENCE, MODEL),
        axis_types=(AxisType.Auto,) * 3,
        devices=jax.devices()[:used],
    )


def check_slots(mesh: Mesh | None, slots: int) -> None:
    """Refuses rows that the mesh's `sequence` axis does not divide evenly.

    Args:
      mesh: The mesh; None accepts all.
      slots: Slots of a row.

    Raises:
      MeshError: If `sequence` does not divide `slots`.
    """
    parts = 1 if mesh is None else mesh.shape[SEQUENCE]
    if slots % parts:
        raise MeshError(
            f"mesh.sequence={parts} does not divide rows of {slots} slots; set "
            f"--config.data.length={-(-slots // parts) * parts}"
        )


def check_rows(mesh: Mesh | None, rows: int, parts: int) -> None:
    """Refuses a batch that the mesh does not divide.

    Args:
      mesh: The mesh; None divides nothing.
      rows: Of a global batch.
      parts: Parts that it is split into one after the other, for accumulation.

    Raises:
      MeshError: If each device would not get as many rows of each part.
    """
    if mesh is None:
        return
    data, multiple = mesh.shape[DATA], parts * mesh.shape[DATA]
    if rows % multiple:
        # The most parts that both the devices and the rows divide into; it may be one.
        devices = mesh.size // mesh.shape[SEQUENCE]
        fewer = math.gcd(devices, rows // parts)
        raise MeshError(
            f"data.batch_size is {rows}: it must be a multiple of {multiple} "
            f"(mesh.data={data} x training.accumulation_steps={parts}); set "
            f"--config.data.batch_size={-(-rows // multiple) * multiple}, or keep the batch and "
            f"divide the item table as well: --config.mesh.data={fewer} "
            f"--config.mesh.model={devices // fewer}"
        )


@functools.lru_cache
def rows_read(mesh: Mesh | None) -> tuple[int, int]:
    """Which slice of each global batch this process reads, and into how many they are divided.

    Raises:
      MeshError: If a process's devices want no such slice.
    """
    if mesh is None:
        return 0, 1
    owners = np.vectorize(lambda device: device.process_index)(mesh.devices)
    parts = np.flatnonzero((owners == jax.process_index()).any(axis=(1, 2)))
    first, size = int(parts[0]), len(parts)
    if parts[-1] - first + 1 != size or first % size or mesh.shape[DATA] % size:
        raise MeshError(
            f"process {jax.process_index()} holds parts {parts.tolist()} of the batch's "
            f"{mesh.shape[DATA]}, which is no equal slice: want a mesh.data or a mesh.model that "
            "the devices of one host divide, or that divides them"
        )
    return first // size, mesh.shape[DATA] // size


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def by_slots(mesh: Mesh) -> NamedSharding:
    """The sharding of an array [rows, slots, ...] over `data` and `sequence`."""
    return NamedSharding(mesh, PartitionSpec(DATA, SEQUENCE))


def batch_spec(shape: tuple[int, ...]) -> PartitionSpec:
    """The spec of a batch's array [rows, slots, ...]; a single slot is not divided."""
    return PartitionSpec(DATA, SEQUENCE if shape[1] > 1 else None)


def state_shardings(tree: Tree, mesh: Mesh) -> Tree:
    """The sharding of each array (or shape) of parameters or of a training state."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: NamedSharding(mesh, _spec(parameter_path(path))), tree
    )


def _spec(name: str) -> PartitionSpec:
    return next(spec for pattern, spec in RULES if re.search(pattern, name))


def _padded(name: str, shape: tuple[int, ...], mesh: Mesh) -> tuple[int, ...]:
    """The shape that an array of this name and shape is padded to."""
    spec = _spec(name)
    parts = [1 if axis is None else mesh.shape[axis] for axis in spec]
    parts += [1] * (len(shape) - len(parts))
    return tuple(-(-size // part) * part for size, part in zip(shape, parts, strict=True))


def shapes_before_padding(tree: Any, mesh: Mesh) -> dict[str, tuple[int, ...]]:
    """By name, the shapes of those arrays that `place` pads.

    Args:
      tree: Parameters or a training state, not padded.
      mesh: Where it is to stand.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    shapes = {parameter_path(path): tuple(leaf.shape) for path, leaf in leaves}
    return {name: shape for name, shape in shapes.items() if _padded(name, shape, mesh) != shape}


def place(params: Tree, mesh: Mesh) -> Tree:
    """Parameters that every process holds whole, put where the rules say; padded with zeros."""

    def put(path: jax.tree_util.KeyPath, leaf: Any, sharding: NamedSharding) -> jax.Array:
        values = np.asarray(leaf)
        shape = _padded(parameter_path(path), values.shape, mesh)
        values = np.pad(
            values, [(0, to - size) for size, to in zip(values.shape, shape, strict=True)]
        )
        return jax.make_array_from_callback(shape, sharding, lambda index: values[index])

    return jax.tree_util.tree_map_with_path(put, params, state_shardings(params, mesh))


def place_batch(tree: Tree, mesh: Mesh) -> Tree:
    """Places a batch's arrays [rows, slots, ...] on the mesh.

    Args:
      tree: This process's rows, as `rows_read` assigns them.
      mesh: The mesh.

    Returns:
      The whole batch of all processes, as global arrays.
    """
    return _divided(tree, mesh, *rows_read(mesh))


def place_whole_batch(tree: Tree, mesh: Mesh) -> Tree:
    """Places arrays [rows, slots, ...] that every process holds whole."""
    return _divided(tree, mesh, 0, 1)


def _divided(tree: Tree, mesh: Mesh, index: int, count: int) -> Tree:
    def put(x: Any) -> jax.Array:
        first = index * x.shape[0]

        def part(at: Any) -> Any:
            start, stop, _ = at[0].indices(count * x.shape[0])
            return x[(slice(start - first, stop - first), *at[1:])]

        shape = (count * x.shape[0], *x.shape[1:])
        sharding = NamedSharding(mesh, batch_spec(shape))
        return jax.make_array_from_callback(shape, sharding, part)

    return jax.tree.map(put, tree)
