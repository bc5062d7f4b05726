import pytest

from linseqrec.errors import RunsError
from linseqrec.runs.comparable import check_comparable, shared_title
from linseqrec.runs.finished import find_runs
from tests.runs.conftest import EXPERIMENT, changed

OTHER = changed(training={"seed": 1})


@pytest.mark.parametrize(
    ("differing", "message"),
    [
        ({"digest": "1"}, r"different data \(items, timestamps, offsets differ"),
        ({"split": {"targets": "last"}}, "in their split"),
        ({"protocol": {"ties": "pessimistic"}}, "in their ties"),
        ({"protocol": {"request_time": "known"}}, "in their request time"),
        ({"protocol": {"num_items": 999}}, "in their candidates"),
        ({"first": 500}, "other targets"),
        (
            {"experiment": changed(OTHER, evaluation={"filter_seen": ("all",)})},
            "in their filters of seen items",
        ),
    ],
)
def test_what_differs_is_named_with_the_runs(save_run, tmp_path, differing, message):
    save_run("a")
    save_run("b", changed(training={"seed": 2}))
    save_run("c", **({"experiment": OTHER} | differing))
    conditions = {str(run.folder): run.conditions for run in find_runs([tmp_path])[0]}
    with pytest.raises(RunsError, match=message) as caught:
        check_comparable(conditions)
    assert str(tmp_path / "c") in str(caught.value) and str(tmp_path / "a") in str(caught.value)
    check_comparable(dict(list(conditions.items())[:2]))


def test_neither_the_order_of_filters_nor_the_model_s_window_matters(save_run, tmp_path):
    save_run("a")
    save_run("b", changed(OTHER, evaluation={"filter_seen": ("all", "none")}))
    save_run("c", changed(OTHER, data={"length": 20}), protocol={"max_length": 20})
    # A run of before there were request times was not told any.
    save_run("d", changed(training={"seed": 3}), protocol={"request_time": "hidden"})
    runs, _ = find_runs([tmp_path])
    check_comparable({str(run.folder): run.conditions for run in runs})


def test_a_title_names_the_data_the_split_and_every_note_once():
    known = changed(data={"folder": "data/ml-1m", "request_time": "known"}, note="times imputed")
    assert shared_title([EXPERIMENT], "leave_one_out") == (
        "generated world 'quick' (synthetic data); split leave_one_out"
    )
    assert shared_title([known, changed(known, note=""), known, changed(note="b")], "folds") == (
        "ml-1m; split folds; request time known; times imputed; b"
    )
