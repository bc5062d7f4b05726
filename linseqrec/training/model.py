"""A run's model as functions of its variables."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from linseqrec import sharding
from linseqrec.config import Experiment
from linseqrec.config_fields import ConfigError
from linseqrec.events import Events
from linseqrec.models.base import SequenceModel
from linseqrec.models.own_items import OwnItems


def build_model(experiment: Experiment, num_items: int) -> SequenceModel:
    """An experiment's model with fresh parameters.

    Args:
      experiment: The configuration.
      num_items: Items of the catalogue.

    Raises:
      ConfigError: If request times are known and the model cannot be told of them.
    """
    known = experiment.data.request_time == "known"
    if known and not experiment.model.reads_request_times:
        raise ConfigError(
            f"data.request_time is 'known', but {type(experiment.model).__name__} has "
            "reads_request_times=False: the model cannot be told request times. Let its build call "
            "linseqrec.models.base.request_layer and set reads_request_times = True, or set "
            "data.request_time to 'hidden'"
        )
    rngs = nnx.Rngs(experiment.training.seed)
    # A model that reads no request times may have a build without the argument.
    request_time = {"request_time": True} if known else {}
    model = experiment.model.build(num_items, rngs=rngs, **request_time)
    model = OwnItems(model) if experiment.own_items else model
    # A step returns no weakly typed array, as `jnp.full(3, 1.0)` is: it would compile again for its
    # own results.
    nnx.update(model, jax.tree.map(_strongly_typed, nnx.state(model)))
    return model


def _strongly_typed(array: Array) -> Array:
    return array.astype(array.dtype) if array.weak_type else array


def split_model(model: SequenceModel) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """A model's structure, its parameters and its buffers; `nnx.merge` joins them.

    Buffers are all variables that are no `nnx.Param`.
    """
    graphdef, params, buffers = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]
    return graphdef, params, buffers


@dataclasses.dataclass(frozen=True)
class FunctionalModel:
    """A model, split into its structure and its variables: parameters and buffers.

    It holds no variables itself, only their shapes: a large item table would stay in memory beside
    the one that is trained.

    Attributes:
      graphdef: The structure.
      shapes: The shapes of parameters and buffers, `jax.ShapeDtypeStruct`, without the padding of
        the mesh.
      mesh: The devices that batches and item table are divided over; None for one device.
      build: Makes the model with fresh parameters.
    """

    graphdef: nnx.GraphDef
    shapes: tuple[nnx.State, nnx.State]
    mesh: Mesh | None
    build: Callable[[], SequenceModel]

    @classmethod
    def of(cls, experiment: Experiment, num_items: int, mesh: Mesh | None) -> "FunctionalModel":
        """An experiment's model, as `build_model` makes it, divided over the mesh."""
        build = functools.partial(build_model, experiment, num_items)
        graphdef, params, buffers = split_model(nnx.eval_shape(build))
        return cls(graphdef, (params, buffers), mesh, build)

    def fresh(self) -> tuple[nnx.State, nnx.State]:
        """New parameters and buffers, the same ones each time; on a mesh divided over devices."""
        # An item table that the mesh divides need not fit on one of its devices.
        cpu = None if self.mesh is None else jax.local_devices(backend="cpu")[0]
        with contextlib.nullcontext() if cpu is None else jax.default_device(cpu):
            _, params, buffers = split_model(self.build())
        return (
            (params, buffers) if self.mesh is None else sharding.place((params, buffers), self.mesh)
        )

    @functools.cached_property
    def abstract(self) -> tuple[nnx.State, nnx.State]:
        """Shapes, types and devices of what `fresh` gives."""
        return sharding.abstract(self.shapes, self.mesh)

    def merge(self, variables: nnx.State) -> SequenceModel:
        """The model with these variables."""
        return nnx.merge(self.graphdef, variables)

    @functools.cached_property
    def encode(self) -> Any:
        """The compiled model, `(variables, events) -> hidden [B, T, D]`, without dropout."""

        def encode(variables: nnx.State, events: Events) -> Array:
            with sharding.while_tracing(self.mesh):
                return self.merge(variables)(events).hidden

        if (mesh := self.mesh) is None:
            return jax.jit(encode)
        compiled = jax.jit(encode, out_shardings=sharding.by_slots(mesh))
        return lambda variables, events: compiled(
            variables, sharding.place_whole_batch(events, mesh)
        )

    def item_table(self, variables: nnx.State) -> Float[Array, "N1 D"]:
        """The model's output table; on a mesh split by rows, and padded."""
        return self.merge(variables).item_table()
