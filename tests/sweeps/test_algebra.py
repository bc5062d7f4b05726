import numpy as np
import pytest

from linseqrec.errors import SweepError
from linseqrec.sweeps.algebra import draws, grid, product, zipped
from linseqrec.sweeps.ranges import Range, parse_range


def test_a_product_holds_every_combination_the_last_axis_fastest():
    axes = [grid("a", [1, 2]), zipped({"b": [3, 4], "c": [5, 6]})]
    assert product(axes) == [
        {"a": 1, "b": 3, "c": 5},
        {"a": 1, "b": 4, "c": 6},
        {"a": 2, "b": 3, "c": 5},
        {"a": 2, "b": 4, "c": 6},
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: grid("a", [1, 2, 1]), "a has the value 1 twice"),
        (lambda: zipped({"a": [1, 2], "b": [3]}), "they have a 2, b 1"),
        (lambda: zipped({"a": [1, 1], "b": [3, 3]}), "the zip has .* twice"),
        (lambda: product([grid("a", [1]), zipped({"a": [2], "b": [3]})]), "a is swept twice"),
        (lambda: draws({"a": Range("int", 1, 3)}, 4, 0), "4 draws are more than the 3 comb"),
        (
            lambda: draws({"a": Range("lin", 0.1, 0.1002), "b": Range("int", 1, 2)}, 9, 0),
            "9 draws are more than the 6 combinations",
        ),
        (lambda: parse_range("log:0:1"), "0 < low < high"),
        (lambda: parse_range("lin:2:1"), "low < high"),
        (lambda: parse_range("int:1:2.5"), "in whole numbers"),
        (lambda: parse_range("exp:1:2"), "write log:LOW:HIGH"),
    ],
    ids=[
        "a value twice",
        "a zip of unequal lists",
        "a zip's values twice",
        "one field in two axes",
        "more draws than whole numbers",
        "more draws than rounded numbers",
        "log from 0",
        "high below low",
        "int with a fraction",
        "unknown scale",
    ],
)
def test_what_is_no_sweep_is_refused(make, message):
    with pytest.raises(SweepError, match=message):
        make()


def test_draws_repeat_with_their_seed_and_grow():
    ranges = {"rate": parse_range("log:1e-4:1e-2"), "layers": parse_range("int:1:4")}
    few, many = draws(ranges, 5, 7), draws(ranges, 20, 7)
    assert many[:5] == few
    assert draws(ranges, 5, 8) != few
    # Neither another order of the fields nor another field moves them.
    assert draws(dict(reversed(ranges.items())), 5, 7) == few
    wider = draws(ranges | {"dropout": parse_range("lin:0:0.5")}, 5, 7)
    assert [draw["rate"] for draw in wider] == [draw["rate"] for draw in few]


def test_draws_are_distinct_and_reach_every_whole_number():
    drawn = draws({"layers": parse_range("int:1:4")}, 4, 0)
    assert sorted(draw["layers"] for draw in drawn) == [1, 2, 3, 4]


def test_draws_are_uniform_in_their_scale():
    ranges = {"rate": Range("log", 1e-4, 1e-2), "dropout": Range("lin", 0.1, 0.5)}
    drawn = draws(ranges, 2000, 0)
    for field, between in (
        ("rate", lambda value: (np.log10(value) + 4) / 2),
        ("dropout", lambda value: (value - 0.1) / 0.4),
    ):
        shares = np.sort([between(draw[field]) for draw in drawn])
        # Kolmogorov's distance; 1.95 / sqrt(n) is exceeded by chance once in a thousand.
        assert np.abs(shares - np.linspace(0, 1, 2000)).max() < 1.95 / np.sqrt(2000), field
        assert shares[0] >= 0 and shares[-1] <= 1


def test_rounding_stays_within_the_range():
    narrow = Range("lin", 0.123456, 0.123457)
    assert all(0.123456 <= narrow.at(share) <= 0.123457 for share in (0, 0.5, 0.999))
