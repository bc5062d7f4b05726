"""A convolution whose rows are split over devices equals the one on a single device."""

import jax
import numpy as np
import pytest

from linseqrec.ops.convolution import sequence_parallel_short_convolution, short_convolution
from tests.multidevice.test_gated_delta_rule import SEGMENTS, TIME, mesh_of, spec
from tests.ops.closeness import assert_close, projected
from tests.ops.test_convolution import by_loops, random_arguments

# Here the events of one segment stand together.
IDS = np.where((SEGMENTS == 5) & (np.arange(TIME) >= TIME - 2), 6, SEGMENTS)


def split_over_time(x, weight, bias, state):
    slots = spec(None, "time")

    def part(x, weight, bias, ids, state):
        return sequence_parallel_short_convolution(
            x, weight, bias, axis_name="time", segment_ids=ids, state=state
        )

    inputs = slots, spec(), spec(), slots, spec()
    split = jax.shard_map(part, mesh=mesh_of(time=4), in_specs=inputs, out_specs=(slots, spec()))
    return split(x, weight, bias, IDS, state)


@pytest.mark.parametrize("given", [True, False], ids=["state", "no state"])
@pytest.mark.parametrize("taps", [1, 2, 4, 9], ids="{} taps".format)
def test_time_split_over_devices_equals_one_device(taps, given):
    arguments = random_arguments(len(SEGMENTS), TIME, taps)
    if not given:
        arguments["state"] = np.zeros_like(arguments["state"])
    expected = by_loops(**arguments, segment_ids=IDS)
    x, weight, bias = (arguments[name] for name in ("x", "weight", "bias"))
    state = arguments["state"] if given else None

    def whole(x, weight, bias, state):
        return short_convolution(x, weight, bias, segment_ids=IDS, state=state)

    def differentiated(run):
        of = jax.grad(lambda x, weight: projected(run(x, weight, bias, state)), (0, 1))
        return jax.jit(lambda x, weight: (run(x, weight, bias, state), of(x, weight)))

    actual, slopes = differentiated(split_over_time)(x, weight)
    for got, wanted in zip(actual, expected, strict=True):
        assert_close(got, wanted, 1e-6)
    for got, wanted in zip(slopes, differentiated(whole)(x, weight)[1], strict=True):
        assert_close(got, np.asarray(wanted), 1e-5)


def test_too_few_slots_a_device_are_refused():
    arguments = random_arguments(len(SEGMENTS), TIME, taps=10)
    with pytest.raises(ValueError, match="8 slots; 10 taps need at least 9"):
        split_over_time(**arguments)
