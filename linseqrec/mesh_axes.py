"""The mesh's axes by name, and what a layer asks of the mesh while its model is traced."""

import contextlib
from typing import Any

import jax
from jax.sharding import Mesh

# Rows of a batch, slots of a row, and rows of the item table (see `linseqrec.sharding`).
DATA, SEQUENCE, MODEL = "data", "sequence", "model"


def while_tracing(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
    """A context in which to call a model, so that its layers know the mesh (`time_is_split`)."""
    if mesh is None:
        return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def time_is_split() -> bool:
    """Whether the model being traced has its rows' slots divided over devices."""
    return jax.sharding.get_abstract_mesh().shape.get(SEQUENCE, 1) > 1
