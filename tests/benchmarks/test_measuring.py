"""The arithmetic of medians and ratios, on a clock that the test turns."""

import time

import jax
import jax.numpy as jnp
import pytest

from linseqrec.benchmarks import measuring


@pytest.fixture
def clock(monkeypatch):
    """Functions that take the given times on each successive call, twice as much on all cores."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(time, "process_time", lambda: 2 * now[0])

    def taking(*seconds):
        remaining = list(seconds)

        def function():
            now[0] += remaining.pop(0)

        return function

    return taking


def test_ratio_is_the_median_of_the_rounds_ratios(clock):
    # A neighbour makes the second round ten times slower; not timed: the first call (99), and the
    # one that goes before each timed one (50).
    rows = list(
        measuring.compare(
            "case",
            {
                "first": clock(99, 50, 2, 50, 20, 50, 4),
                "second": clock(99, 50, 3, 50, 30, 50, 2),
            },
            repeats=3,
            extra={"second": {"temporary_bytes": 7}},
        )
    )
    assert [row.variant for row in rows] == ["first", "second"]
    assert [row.seconds for row in rows] == [4, 3]
    assert [row.ratio for row in rows] == [1, 1.5]
    assert [row.processor_seconds for row in rows] == [8, 6]
    assert rows[1].quartiles == (2.5, 16.5)
    assert rows[0].extra == {} and rows[1].extra == {"temporary_bytes": 7}


def test_a_comparison_needs_something_to_compare():
    with pytest.raises(ValueError, match="needs at least one variant"):
        list(measuring.compare("case", {}, repeats=3))
    with pytest.raises(ValueError, match="repeats >= 1"):
        list(measuring.compare("case", {"one": lambda: None}, repeats=0))


def test_temporary_bytes_see_the_scratch_array_of_a_program_that_never_runs():
    def through_a_square(x):
        return jnp.sort(x[:, None] * x[None, :], axis=0).sum()

    large = jax.ShapeDtypeStruct((100_000,), jnp.float32)
    assert measuring.temporary_bytes(through_a_square, large) >= 100_000**2 * 4


def test_growth_exponent_is_that_of_the_power_the_times_were_made_of():
    lengths = [256, 512, 2_048, 8_192]
    assert measuring.growth_exponent(lengths, [3e-6 * n**1.5 for n in lengths]) == pytest.approx(
        1.5
    )
    # By hand, for times off the line: logs of base 2 at 0, 1, 2 are 0, 2, 3, of slope 3 / 2.
    assert measuring.growth_exponent([1, 2, 4], [1, 4, 8]) == pytest.approx(1.5)


@pytest.mark.parametrize(
    "lengths, values",
    [([8], [1.0]), ([8, 8], [1.0, 2.0]), ([8, 16], [1.0]), ([8, 16], [float("nan"), 1.0])],
    ids=["one length", "equal lengths", "a value missing", "not a number"],
)
def test_an_exponent_needs_two_lengths_and_positive_values(lengths, values):
    with pytest.raises(
        ValueError, match="two different lengths and one value for each, all positive"
    ):
        measuring.growth_exponent(lengths, values)


def test_environment_names_versions_and_no_host():
    found = measuring.environment()
    assert found["versions"]["jax"] == jax.__version__
    assert found["cores"] >= 1 and found["devices"]
    assert "host" not in " ".join(found)
