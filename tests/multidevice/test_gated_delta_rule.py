"""A sequence split over devices equals the sequence on one."""

from functools import partial

import jax
import numpy as np
import pytest

from linseqrec.ops.gated_delta_rule import gated_delta_rule, sequence_parallel_gated_delta_rule
from tests.ops.closeness import projected
from tests.ops.test_gated_delta_rule import assert_all_close, by_loops, make

spec = jax.sharding.PartitionSpec
TIME = 32  # eight slots a device

# Segments within a device, across two, across all; boundaries at a device's edge; padding that
# covers a device, and a row without events.
SEGMENTS = np.array(
    [
        [1] * TIME,
        [0] * TIME,
        [1] * 3 + [2] * 13 + [3] * 16,
        [5] * 20 + [0] * 10 + [5] * 2,
        [0] * 9 + [2] * 9 + [4] * 6 + [0] * 8,
        [1] * 8 + [2] * 8 + [1] * 8 + [2] * 8,
    ],
    np.int32,
)


def mesh_of(**axes):
    kinds = (jax.sharding.AxisType.Auto,) * len(axes)
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=kinds)


def test_there_are_devices():
    assert len(jax.devices()) == 4


@pytest.mark.parametrize("segments", [True, False], ids=["segments", "whole rows"])
@pytest.mark.parametrize("decay", ["mild", "gaps"])
def test_time_split_over_devices_equals_one_device(segments, decay):
    inputs, state = make(len(SEGMENTS), TIME, keys="duplicates", decay=decay)
    ids = SEGMENTS if segments else None
    slots = spec(None, "time")
    split = jax.shard_map(
        lambda x, ids, state: sequence_parallel_gated_delta_rule(
            **x, axis_name="time", segment_ids=ids, initial_state=state, chunk_size=4
        ),
        mesh=mesh_of(time=4),
        in_specs=(slots, None if ids is None else slots, spec()),
        out_specs=(slots, spec()),
    )

    def whole(x, ids, state):
        return gated_delta_rule(
            **x, segment_ids=ids, initial_state=state, implementation="recurrent"
        )

    def differentiated(run):
        of = jax.grad(lambda x, state: projected(run(x, ids, state)), (0, 1))
        return jax.jit(lambda x, state: (run(x, ids, state), of(x, state)))

    actual, slopes = differentiated(split)(inputs, state)
    assert_all_close(actual, by_loops(inputs, ids, state), 2e-6)
    assert_all_close(slopes, differentiated(whole)(inputs, state)[1], 1e-5)


@pytest.mark.parametrize("implementation", ["recurrent", "chunked", "associative"])
def test_rows_and_heads_split_over_devices(implementation):
    """By the compiler from shardings, and by hand in shard_map."""
    inputs, state = make(4, TIME)
    ids = SEGMENTS[[0, 2, 4, 5]]
    mesh = mesh_of(data=2, model=2)
    rule = partial(gated_delta_rule, implementation=implementation, chunk_size=8)

    def run(x, ids, state):
        return rule(**x, segment_ids=ids, initial_state=state)

    expected = by_loops(inputs, ids, state)
    specs = (spec("data", None, "model"), spec("data"), spec("data", "model"))
    by_hand = jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=(specs[0], specs[2]))
    assert_all_close(jax.jit(by_hand)(inputs, ids, state), expected, 2e-6)
    placed = [
        jax.device_put(x, jax.sharding.NamedSharding(mesh, of))
        for x, of in zip((inputs, ids, state), specs, strict=True)
    ]
    output, final = jax.jit(run)(*placed)
    assert_all_close((output, final), expected, 2e-6)
    assert output.sharding.is_equivalent_to(placed[0]["v"].sharding, output.ndim)
