"""The mesh of devices, and how arrays are split over it.

The mesh has three axes. `data` splits the rows of a batch, and `sequence` splits the slots of each
row. `model` splits the rows of the item table, which is the only array that grows with the
catalogue. Every device has a copy of all other arrays.

If the `model` axis does not divide the table's rows evenly, `place` pads the table with rows of
zeros. A function that reads a padded table therefore needs the number of items as an argument.
Checkpoints record the shapes without padding, so that they fit every mesh.
"""

import contextlib
import dataclasses
import functools
import math
import re
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from linseqrec.config_fields import Config
from linseqrec.errors import UserError

# The mesh's axes: they split the rows of a batch, the slots of a row, the rows of the item table.
DATA, SEQUENCE, MODEL = "data", "sequence", "model"

Tree = TypeVar("Tree")

# The first pattern that matches the end of an array's name ("params/embedding/table") decides how
# the array is split. The names of the optimizer's moments end in their parameter's name, so a
# moment is split like its parameter.
RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"(^|/)(embedding/table|row_steps)$", PartitionSpec(MODEL)),
    (r"", PartitionSpec()),
)


def parameter_path(path: jax.tree_util.KeyPath) -> str:
    """The name of the leaf at `path` of parameters or of any state; `RULES` go by it."""
    return jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value")


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by name (`parameter_path`)."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {parameter_path(path): leaf for path, leaf in leaves}


class MeshError(UserError, ValueError):
    """The mesh does not fit the devices or the batch."""


@dataclasses.dataclass(frozen=True)
class MeshConfig(Config):
    """The sizes of the mesh's axes; their product is the number of devices.

    Attributes:
      data: Number of parts of a batch's rows. -1 uses all devices that the other axes leave.
      model: Number of parts of the item table's rows.
      sequence: Number of parts of each row's slots, for histories whose activations do not fit in
        the memory of one device.
    """

    data: int = -1
    model: int = 1
    sequence: int = 1


def make_mesh(config: MeshConfig) -> Mesh | None:
    """The mesh of a configuration, over the devices of all processes.

    Returns:
      The mesh of shape [data, sequence, model]; None for a single device.

    Raises:
      MeshError: The mesh needs more devices than there are, or would leave devices unused although
        data=-1 or the run has several processes.
    """
    num_devices, per_data_part = jax.device_count(), config.sequence * config.model
    data = config.data
    if data == -1 and per_data_part > 0:
        data = num_devices // per_data_part
    used = data * per_data_part
    needs_all = config.data == -1 or jax.process_count() > 1
    if (
        min(data, config.sequence, config.model) < 1
        or used > num_devices
        or (needs_all and used != num_devices)
    ):
        raise MeshError(
            f"mesh.data={config.data}, mesh.sequence={config.sequence}, mesh.model={config.model} "
            f"do not fit {num_devices} device{'s' if num_devices > 1 else ''}: their product must "
            f"be {'' if needs_all else 'at most '}{num_devices}; or set --config.mesh.data=-1, and "
            f"mesh.sequence and mesh.model to numbers whose product divides {num_devices}"
        )
    if used == 1:
        return None
    return jax.make_mesh(
        (data, config.sequence, config.model),
        (DATA, SEQUENCE, MODEL),
        axis_types=(AxisType.Auto,) * 3,
        devices=jax.devices()[:used],
    )


def while_tracing(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
    """A context for calls of a model. Inside, `time_is_split` knows the mesh."""
    if mesh is None:
        return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def time_is_split() -> bool:
    """Whether the mesh of the current `while_tracing` splits the slots of a row over devices."""
    return jax.sharding.get_abstract_mesh().shape.get(SEQUENCE, 1) > 1


def varying_axes(*arrays: jax.Array) -> frozenset[str]:
    """The mesh axes over which any of the arrays varies; none outside `jax.shard_map`."""
    return frozenset().union(*(jax.typeof(x).manual_axis_type.varying for x in arrays))


def vary_over(axes: frozenset[str], arrays: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    """The arrays, varying over all of the axes; the gradient of one that did not is a sum."""

    def widen(x: jax.Array) -> jax.Array:
        missing = tuple(axes - varying_axes(x))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return tuple(map(widen, arrays))


def vary_alike(arrays: Any) -> Any:
    """A tree of arrays, all varying over the mesh axes over which any of them varies.

    Inside `jax.shard_map`, the carry of a scan must vary like the values that the scan adds to it,
    and the gradients of a `custom_vjp` like its arguments.
    """
    leaves, structure = jax.tree.flatten(arrays)
    return jax.tree.unflatten(structure, vary_over(varying_axes(*leaves), leaves))


def check_slots(mesh: Mesh | None, slots: int) -> None:
    """Raises an error if the mesh's `sequence` axis does not divide the slots of a row evenly.

    Args:
      mesh: The mesh; None for one device.
      slots: Number of slots of a row.

    Raises:
      MeshError: `sequence` does not divide `slots`.
    """
    parts = 1 if mesh is None else mesh.shape[SEQUENCE]
    if slots % parts:
        raise MeshError(
            f"mesh.sequence={parts} does not divide rows of {slots} slots; set mesh.sequence to a "
            f"divisor of {slots}, or train with --config.data.length={-(-slots // parts) * parts}"
        )


def check_rows(mesh: Mesh | None, rows: int, accumulation_steps: int) -> None:
    """Raises an error if the mesh does not divide the rows of a batch evenly.

    Args:
      mesh: The mesh; None for one device.
      rows: Number of rows of a batch of the whole run.
      accumulation_steps: Number of microbatches, which the run reads one after the other.

    Raises:
      MeshError: The devices would get different numbers of rows of a microbatch.
    """
    if mesh is None:
        return
    data, multiple = mesh.shape[DATA], accumulation_steps * mesh.shape[DATA]
    if rows % multiple:
        # The largest `data` that divides the devices and the rows of a microbatch; it may be 1.
        devices = mesh.size // mesh.shape[SEQUENCE]
        smaller_data = math.gcd(devices, rows // accumulation_steps)
        raise MeshError(
            f"data.batch_size is {rows}: it must be a multiple of {multiple} "
            f"(mesh.data={data} x training.accumulation_steps={accumulation_steps}); set "
            f"--config.data.batch_size={-(-rows // multiple) * multiple}, or keep the batch size "
            f"and split the item table too: --config.mesh.data={smaller_data} "
            f"--config.mesh.model={devices // smaller_data}"
        )


@functools.lru_cache
def process_slice(mesh: Mesh | None) -> tuple[int, int]:
    """The slice of each batch that this process reads: its index, and the number of slices.

    Raises:
      MeshError: The devices of this process do not need one of several equal slices.
    """
    if mesh is None:
        return 0, 1
    process_of_device = np.vectorize(lambda device: device.process_index)(mesh.devices)
    own_parts = np.flatnonzero((process_of_device == jax.process_index()).any(axis=(1, 2)))
    first, size = int(own_parts[0]), len(own_parts)
    if own_parts[-1] - first + 1 != size or first % size or mesh.shape[DATA] % size:
        raise MeshError(
            f"process {jax.process_index()} needs the parts {own_parts.tolist()} of the "
            f"{mesh.shape[DATA]} parts of a batch, but processes must read equal slices: set "
            "mesh.data or mesh.model to a number that divides the devices of one host, or that "
            "they divide"
        )
    return first // size, mesh.shape[DATA] // size


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device has a whole copy of."""
    return NamedSharding(mesh, PartitionSpec())


def by_slots(mesh: Mesh) -> NamedSharding:
    """The sharding of an array [rows, slots, ...] over `data` and `sequence`."""
    return NamedSharding(mesh, PartitionSpec(DATA, SEQUENCE))


def batch_spec(shape: tuple[int, ...]) -> PartitionSpec:
    """The partition of a batch's array [rows, slots, ...]; a single slot stays whole."""
    return PartitionSpec(DATA, SEQUENCE if shape[1] > 1 else None)


def state_shardings(tree: Tree, mesh: Mesh) -> Tree:
    """The shardings of the arrays of parameters or of a training state, in the same tree.

    Args:
      tree: Arrays, or their shapes.
      mesh: The mesh.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: NamedSharding(mesh, _spec(parameter_path(path))), tree
    )


def _spec(name: str) -> PartitionSpec:
    return next(spec for pattern, spec in RULES if re.search(pattern, name))


def _padded_shape(name: str, shape: tuple[int, ...], mesh: Mesh) -> tuple[int, ...]:
    """The shape of an array on the mesh, with padding."""
    spec = _spec(name)
    parts = [1 if axis is None else mesh.shape[axis] for axis in spec]
    parts += [1] * (len(shape) - len(parts))
    return tuple(-(-size // part) * part for size, part in zip(shape, parts, strict=True))


def shapes_before_padding(tree: Any, mesh: Mesh) -> dict[str, tuple[int, ...]]:
    """The unpadded shapes of the arrays that `place` pads, by name.

    Args:
      tree: Parameters or a training state without padding.
      mesh: The mesh.
    """
    shapes = {name: tuple(leaf.shape) for name, leaf in named_leaves(tree).items()}
    return {
        name: shape for name, shape in shapes.items() if _padded_shape(name, shape, mesh) != shape
    }


def abstract(tree: Tree, mesh: Mesh | None) -> Tree:
    """Shapes, types and shardings of the arrays that `place` makes; on one device without a mesh.

    Args:
      tree: Arrays, or their shapes, without padding.
      mesh: The mesh; None for the first device.
    """
    if mesh is None:
        single = SingleDeviceSharding(jax.local_devices()[0])
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=single), tree
        )

    def padded(path: jax.tree_util.KeyPath, leaf: Any, sharding: NamedSharding) -> Any:
        shape = _padded_shape(parameter_path(path), leaf.shape, mesh)
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(padded, tree, state_shardings(tree, mesh))


def place(params: Tree, mesh: Mesh) -> Tree:
    """Parameters on the mesh, split and padded with zeros.

    Args:
      params: Parameters, whole and equal on every process.
      mesh: The mesh.
    """

    def put(path: jax.tree_util.KeyPath, leaf: Any, sharding: NamedSharding) -> jax.Array:
        values = np.asarray(leaf)
        shape = _padded_shape(parameter_path(path), values.shape, mesh)
        values = np.pad(
            values, [(0, padded - size) for size, padded in zip(values.shape, shape, strict=True)]
        )
        return jax.make_array_from_callback(shape, sharding, lambda index: values[index])

    return jax.tree_util.tree_map_with_path(put, params, state_shardings(params, mesh))


def place_batch(tree: Tree, mesh: Mesh) -> Tree:
    """The batch of all processes as global arrays on the mesh.

    Args:
      tree: Arrays [rows, slots, ...] with this process's rows (`process_slice`).
      mesh: The mesh.
    """
    return _place_rows(tree, mesh, process_slice(mesh)[1])


def place_whole_batch(tree: Tree, mesh: Mesh) -> Tree:
    """A batch as global arrays on the mesh.

    Args:
      tree: Arrays [rows, slots, ...], whole and equal on every process.
      mesh: The mesh.
    """
    return _place_rows(tree, mesh, 1)


def _place_rows(tree: Tree, mesh: Mesh, parts: int) -> Tree:
    """Global arrays from this process's rows, which are one of `parts` equal parts of all rows."""

    def put(rows: Any) -> jax.Array:
        shape = (parts * rows.shape[0], *rows.shape[1:])
        sharding = NamedSharding(mesh, batch_spec(shape))
        return jax.make_array_from_process_local_data(sharding, rows, shape)

    return jax.tree.map(put, tree)
