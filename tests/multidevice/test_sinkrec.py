"""What a step does to SinkRec's codes after its update, divided over devices, is what it does on
one."""

import jax
import numpy as np

from linseqrec.sharding import MeshConfig, make_mesh
from tests.models.small_sinkrec import by_name, out_of_use, small_run
from tests.ops.closeness import assert_close


def trained(mesh):
    """After a step that seeds the codes, one that counts their use, and one that replaces all."""
    made = small_run(parts=2, mesh=make_mesh(mesh))
    state, states = made.step.initial_state(), []
    for index in range(3):
        if index == 2:
            state = out_of_use(state)
        state, metrics = made.step.update(state, made.step.place(made.batches[index]))
        arrays = by_name(made, jax.device_get(state.variables))
        states.append({name: arrays[f"memory/{name}"] for name in ("codebooks", "usage")})
    return states, metrics


def test_a_mesh_changes_no_code():
    one, expected = trained(MeshConfig(1, 1))
    many, metrics = trained(MeshConfig(2, 2))
    for before, after in zip(one, many, strict=True):
        for name in before:
            assert_close(after[name], before[name], 1e-4)
    # The last step's codes are all new: the optimizer moves them by 2e-3.
    assert np.abs(one[2]["codebooks"] - one[1]["codebooks"]).max(axis=-1).min() > 0.02
    np.testing.assert_array_equal(one[2]["usage"], 0.25)
    for name, value in expected.items():
        assert_close(metrics[name], value, 1e-4)
