import pytest

from linseqrec.errors import RunsError
from linseqrec.runs.comparable import check_comparable, shared_title
from linseqrec.runs.configurations import group_by_configuration
from linseqrec.runs.figures import run_figures
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
        ({"protocol": {"targets_among_seen": 9}}, "in their treatment of seen targets"),
        ({"protocol": {"bucket_edges": [0, 60]}}, "in their length buckets"),
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


def test_old_results_stand_beside_new_ones_where_their_metrics_are_alike(save_run, tmp_path):
    """No target is seen, so that it does not matter how the filter treats seen targets."""
    save_run("old", protocol={"targets_among_seen": 0})
    new = {"targets_among_seen": 0, "seen_targets": "missed"}
    save_run("new", OTHER, protocol=new | {"bucket_edges": [0, 50, 100, 200, 500, 1_000]})
    runs, _ = find_runs([tmp_path])
    check_comparable({str(run.folder): run.conditions for run in runs})
    figure = run_figures(group_by_configuration(runs), ("none",), "NDCG@10", "")["by_length.png"]
    assert figure.axes[0].get_xticklabels()[-1].get_text().startswith("1,000+")


def test_a_title_names_the_data_the_split_and_every_note_once():
    known = changed(data={"folder": "data/ml-1m", "request_time": "known"}, note="times imputed")
    assert shared_title([EXPERIMENT], "leave_one_out") == (
        "generated world 'quick' (synthetic data); split leave_one_out"
    )
    assert shared_title([known, changed(known, note=""), known, changed(note="b")], "folds") == (
        "ml-1m; split folds; request time known; times imputed; b"
    )
