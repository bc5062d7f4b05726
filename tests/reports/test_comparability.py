import pytest

from linseqrec.errors import ReportError
from linseqrec.reports.comparability import check_comparable
from linseqrec.reports.runs import find_runs
from tests.reports.conftest import changed

OTHER = changed(training={"seed": 1})


@pytest.mark.parametrize(
    ("differing", "message"),
    [
        ({"digest": "1"}, r"data \(items, timestamps, offsets differ"),
        ({"split": {"targets": "last"}}, "their split differ"),
        ({"protocol": {"ties": "pessimistic"}}, "their ties differ"),
        ({"protocol": {"request_time": "known"}}, "their request time differ"),
        ({"protocol": {"num_items": 999}}, "their candidate set differ"),
        ({"first": 500}, "other test targets"),
        (
            {"experiment": changed(OTHER, evaluation={"filter_seen": ("all",)})},
            "their filter .seen items. differ",
        ),
    ],
)
def test_what_differs_is_named_with_the_runs(make_run, tmp_path, differing, message):
    make_run("a")
    make_run("b", changed(training={"seed": 2}))
    make_run("c", **({"experiment": OTHER} | differing))
    runs, _ = find_runs([tmp_path])
    with pytest.raises(ReportError, match=message) as caught:
        check_comparable(runs)
    assert str(tmp_path / "c") in str(caught.value) and str(tmp_path / "a") in str(caught.value)
    check_comparable(runs[:2])


def test_neither_the_order_of_filters_nor_the_model_s_window_matters(make_run, tmp_path):
    make_run("a")
    make_run("b", changed(OTHER, evaluation={"filter_seen": ("all", "none")}))
    make_run("c", changed(OTHER, data={"length": 20}), protocol={"max_length": 20})
    # A run of before there were request times was not told any.
    make_run("d", changed(training={"seed": 3}), protocol={"request_time": "hidden"})
    check_comparable(find_runs([tmp_path])[0])
