"""Figures of runs that have ended: every run is in them, whatever it is called."""

import dataclasses
import json
import shutil

import pytest

from linseqrec.evaluation.metrics import MetricError
from linseqrec.evaluation.table import results_table
from linseqrec.training import results, workdir
from linseqrec.training.loop import train


@pytest.fixture
def saved(monkeypatch):
    """The figures that are saved, by file name."""
    figures = {}

    def save(figure, path):
        figures[path.name] = figure
        return path

    monkeypatch.setattr(results.figures, "save_figure", save)
    return figures


def test_runs_of_one_name_are_all_drawn(experiment, make_run, tmp_path, saved):
    run = make_run(experiment, training={"num_epochs": 1})
    state, _ = train(run, tmp_path / "first")
    results.write_results(run, state, tmp_path / "first")
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    names = ["recgrela (first)", "recgrela (second)"]
    config = json.loads((tmp_path / "second" / "config.json").read_text())
    noted = json.dumps(config | {"note": "times imputed"})
    (tmp_path / "second" / "config.json").write_text(noted)

    paths = results.write_figures([tmp_path / "first", tmp_path / "second"], tmp_path)
    assert [path.name for path in paths] == list(saved)
    # A note of any of the runs is in every title.
    titles = [figure.get_suptitle() for figure in saved.values()]
    assert all(title.count("; times imputed") == 1 for title in titles)
    curves = saved.pop("learning_curves.png").axes[0]
    assert [text.get_text() for text in curves.get_legend().get_texts()] == names
    assert set(saved) == {"by_length_unfiltered.png", "by_length_filtered.png"}
    for figure in saved.values():
        labels = [text.get_text() for text in figure.legends[0].get_texts()]
        assert labels[:2] == names and labels[2] == "Popularity"
        grey = [line.lines[0].get_color() for line in figure.axes[0].containers]
        assert results.figures.REFERENCE not in grey[:2] and len(set(grey[2:])) == 1


def test_known_request_times_stand_in_every_title_and_protocol(
    experiment, make_run, tmp_path, saved
):
    run = make_run(
        dataclasses.replace(experiment, note="times imputed"),
        training={"num_epochs": 1},
        data={"request_time": "known"},
    )
    state, _ = train(run, tmp_path)
    held = results.write_results(run, state, tmp_path)
    assert held["title"].endswith("; split leave_one_out; request time known; times imputed")
    for split in ("validation", "test"):
        for summary in held[split].values():
            assert summary["protocol"]["request_time"] == "known"
    assert "mean ties, request time known:" in results_table(held["test"])
    results.write_figures([tmp_path], tmp_path)
    for figure in saved.values():
        assert figure.get_suptitle().count("request time known; times imputed") == 1


def test_what_cannot_be_drawn_leaves_no_figure(experiment, make_run, tmp_path, saved):
    run = make_run(experiment, training={"num_epochs": 1})
    state, _ = train(run, tmp_path)
    with pytest.raises(workdir.WorkdirError, match="the run has not ended yet"):
        results.write_figures([tmp_path], tmp_path)
    held = results.write_results(run, state, tmp_path)
    with pytest.raises(MetricError, match="no metric 'NDCG@7'"):
        results.write_figures([tmp_path], tmp_path, metric="NDCG@7")
    held["test"]["Markov"]["buckets"]["all"].pop()
    (tmp_path / "results.json").write_text(json.dumps(held))
    with pytest.raises(ValueError, match="must share their buckets"):
        results.write_figures([tmp_path], tmp_path)
    assert not saved
