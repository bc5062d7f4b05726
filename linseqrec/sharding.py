"""Devices as a mesh, and where arrays stand on it: rules by name.

The mesh has two axes. Over `data` the rows of a batch are divided, over `model` the rows of the
item table, the one array that grows with the catalogue; all else stands on every device. What
divides unevenly is padded with zeros up to the next multiple: whoever reads a placed table is told
the number of items, and a checkpoint notes the shapes without the padding, so that it fits any
mesh.
"""

import dataclasses
import math
import re
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from linseqrec.models.weights import parameter_path

Tree = TypeVar("Tree")

DATA, MODEL = "data", "model"

# The first that matches the end of an array's name ("params/embedding/table") places it. The
# optimizer's moments bear their parameter's name, and so stand beside it.
RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"(^|/)embedding/table$", PartitionSpec(MODEL)),
    (r"", PartitionSpec()),
)


class MeshError(ValueError):
    """A mesh that these devices, or this batch, cannot be laid out on."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many devices share the work, and how.

    Attributes:
      data: Parts that a batch's rows are divided into; -1: as many as the devices allow.
      model: Parts that the item table's rows are divided into.
    """

    data: int = -1
    model: int = 1


def make_mesh(config: MeshConfig) -> Mesh | None:
    """The mesh of a configuration, over the devices of all processes.

    Returns:
      The mesh, `data` by `model`; None for one device, which needs none.

    Raises:
      MeshError: If the devices do not suffice or do not divide, or would be left out in a run of
        several processes.
    """
    count = jax.device_count()
    data = count // config.model if config.data == -1 and config.model > 0 else config.data
    used = data * config.model
    idle = config.data == -1 or jax.process_count() > 1
    if data < 1 or config.model < 1 or used > count or (idle and used != count):
        raise MeshError(
            f"mesh.data={config.data}, mesh.model={config.model} cannot be laid out on {count} "
            f"device{'s' if count > 1 else ''}: want mesh.data * mesh.model to be "
            f"{'' if idle else 'at most '}{count}, or mesh.data=-1 and a mesh.model that divides it"
        )
    if used == 1:
        return None
    return jax.make_mesh(
        (data, config.model),
        (DATA, MODEL),
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=jax.devices()[:used],
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
        fewer = math.gcd(mesh.size, rows // parts)
        raise MeshError(
            f"data.batch_size is {rows}: it must be a multiple of {multiple} "
            f"(mesh.data={data} x training.accumulation_steps={parts}); set "
            f"--config.data.batch_size={-(-rows // multiple) * multiple}, or keep the batch and "
            f"divide the item table as well: --config.mesh.data={fewer} "
            f"--config.mesh.model={mesh.size // fewer}"
        )


def rows_read(mesh: Mesh | None) -> tuple[int, int]:
    """Which slice of each global batch this process reads, and into how many they are divided.

    Raises:
      MeshError: If a process's devices want no such slice.
    """
    if mesh is None:
        return 0, 1
    owners = np.vectorize(lambda device: device.process_index)(mesh.devices)
    parts = np.flatnonzero((owners == jax.process_index()).any(axis=1))
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


def by_rows(mesh: Mesh, *, axis: int = 0) -> NamedSharding:
    """A batch, its rows, which that axis counts, divided over `data`."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, DATA))


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


def place_rows(tree: Tree, mesh: Mesh) -> Tree:
    """Arrays that every process holds whole, their rows divided over `data`."""
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(x.shape, by_rows(mesh), lambda index: x[index]), tree
    )
