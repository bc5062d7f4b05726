"""The names of the mesh's axes, and how a layer finds out whether the mesh splits histories."""

import contextlib
from typing import Any

import jax
from jax.sharding import Mesh

# They split the rows of a batch, the slots of a row, and the rows of the item table, in this order
# (see `linseqrec.sharding`).
DATA, SEQUENCE, MODEL = "data", "sequence", "model"


def while_tracing(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
    """A context for calls of a model. Inside, `time_is_split` knows the mesh."""
    if mesh is None:
        return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def time_is_split() -> bool:
    """Whether the mesh of the current `while_tracing` splits the slots of a row over devices."""
    return jax.sharding.get_abstract_mesh().shape.get(SEQUENCE, 1) > 1
