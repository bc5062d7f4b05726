"""Results and figures of runs that were really trained."""

import dataclasses
import functools
import json
import shutil

import numpy as np
import pytest

from linseqrec.config import Experiment
from linseqrec.data.dataset import Dataset
from linseqrec.data.source import DataConfig, Source
from linseqrec.data.splits import leave_one_out
from linseqrec.data.worlds import oracle_scores
from linseqrec.errors import FileError, RunsError, WorkdirError
from linseqrec.evaluation.metrics import MetricError
from linseqrec.runs import figures, finished
from linseqrec.runs.results import (
    evaluate_baselines,
    recorded_environment,
    seal_results,
    write_results,
)
from linseqrec.runs.tables import results_table
from linseqrec.training import workdir
from linseqrec.training.loop import train
from linseqrec.training.run import Run


@pytest.fixture
def saved(monkeypatch):
    """The figures that are saved, by file name."""
    saved = {}

    def save(figure, path):
        saved[path.name] = figure
        return path

    monkeypatch.setattr(figures, "save_figure", save)
    return saved


def test_runs_of_one_seed_are_told_apart_by_their_folders(experiment, make_run, tmp_path, saved):
    run = make_run(experiment, training={"num_epochs": 1})
    state = train(run, tmp_path / "first")
    with workdir.lock(tmp_path / "first"):
        # The test split is read once: nobody else evaluates the run in the meantime.
        with pytest.raises(WorkdirError, match="first is in use by process"):
            write_results(run, state, tmp_path / "first")
    write_results(run, state, tmp_path / "first")
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    names = ["recgrela (first)", "recgrela (second)"]
    config = json.loads((tmp_path / "second" / "config.json").read_text())
    noted = json.dumps(config | {"note": "times imputed"})
    (tmp_path / "second" / "config.json").write_text(noted)

    paths = figures.write_figures([tmp_path / "first", tmp_path / "second"], tmp_path)
    assert [path.name for path in paths] == list(saved)
    # A note of any of the runs is in every title.
    titles = [figure.get_suptitle() for figure in saved.values()]
    assert all(title.count("; times imputed") == 1 for title in titles)
    assert list(saved) == ["learning_curves.png", "by_length.png"]
    curves, by_length = saved.values()
    assert [text.get_text() for text in curves.legends[0].get_texts()] == names
    labels = [text.get_text() for text in by_length.legends[0].get_texts()]
    assert labels[:2] == names and labels[2] == "Popularity"
    assert len(by_length.axes) == 2
    for panel in by_length.axes:
        colours = [line.lines[0].get_color() for line in panel.containers]
        assert figures.REFERENCE not in colours[:2] and set(colours[2:]) == {figures.REFERENCE}


def test_known_request_times_stand_in_every_title_and_protocol(
    experiment, make_run, tmp_path, saved
):
    run = make_run(
        dataclasses.replace(experiment, note="times imputed"),
        training={"num_epochs": 1},
        data={"request_time": "known"},
    )
    state = train(run, tmp_path)
    held = write_results(run, state, tmp_path)
    assert held["title"].endswith("; split leave_one_out; request time known; times imputed")
    for split in ("validation", "test"):
        for summary in held[split].values():
            assert summary["protocol"]["request_time"] == "known"
    assert "mean ties, request time known:" in results_table(held["test"])
    figures.write_figures([tmp_path], tmp_path)
    for figure in saved.values():
        assert figure.get_suptitle().count("request time known; times imputed") == 1


def test_the_oracle_is_told_what_the_models_are():
    """Known request times say more than hidden ones of where a session ends."""
    ranks = {}
    for request_time in ("hidden", "known"):
        data = DataConfig(world="quick", world_users=60, request_time=request_time)
        run = Run.of(Experiment(data=data))
        ranks[request_time] = evaluate_baselines(run, "test")["Oracle"].ranks["none"]
        scores = functools.partial(oracle_scores, run.source.world, request_time=request_time)
        expected = run.evaluator("test").run_scores(scores).ranks["none"]
        np.testing.assert_array_equal(ranks[request_time], expected)
    assert (ranks["hidden"] != ranks["known"]).any()


def test_what_cannot_be_drawn_leaves_no_figure(experiment, make_run, tmp_path, saved):
    run = make_run(experiment, training={"num_epochs": 1})
    state = train(run, tmp_path)
    with pytest.raises(RunsError, match="the run has not ended yet"):
        figures.write_figures([tmp_path], tmp_path)
    held = write_results(run, state, tmp_path)
    with pytest.raises(MetricError, match="no metric 'NDCG@7'"):
        figures.write_figures([tmp_path], tmp_path, metric="NDCG@7")
    held["test"]["Markov"]["buckets"]["all"].pop()
    held = seal_results(tmp_path, run.experiment, held)
    (tmp_path / "results.json").write_text(json.dumps(held))
    with pytest.raises(FileError, match="Markov, .* 'all' has 4 length buckets, not 5"):
        figures.write_figures([tmp_path], tmp_path)
    assert not saved


def test_results_say_that_validation_did_not_select_the_state(experiment, make_run, tmp_path):
    run = make_run(experiment, training={"num_epochs": 1})
    state = train(run, tmp_path)
    best = int(state.step)
    other = dataclasses.replace(state, step=state.step + 1)
    selection = write_results(run, other, tmp_path)["selected_by"]
    assert selection.startswith(f"recency: the checkpoint of step {best}, the best by ")


@pytest.mark.parametrize("targets", ["last", "all"])
def test_the_oracle_is_left_out_where_it_does_not_know_the_states(targets):
    split = {"split": "global_temporal", "temporal_targets": targets}
    run = Run.of(Experiment(data=DataConfig(world="quick", world_users=60, **split)))
    found = evaluate_baselines(run, "test")
    assert "Personal Markov" in found and ("Oracle" in found) == (targets == "last")


def test_each_split_has_length_buckets_of_its_own(tmp_path):
    """The longest history before a test target is in a bucket of its own, not yet in validation."""
    lengths = np.array([1_001, 5, 7])
    dataset = Dataset.from_arrays(
        1 + np.arange(lengths.sum()) % 9,
        np.concatenate([np.arange(length) for length in lengths]),
        np.concatenate([[0], np.cumsum(lengths)]),
    )
    run = Run.of(Experiment(), Source(dataset, leave_one_out(dataset), None))
    results = {
        split: {"Popularity": evaluate_baselines(run, split)["Popularity"].summary()}
        for split in ("validation", "test")
    }
    protocols = [results[split]["Popularity"]["protocol"] for split in ("validation", "test")]
    assert len(protocols[0]["bucket_edges"]) < len(protocols[1]["bucket_edges"])
    finished._check_summaries(tmp_path, results, protocols[1])
    results["validation"]["Popularity"]["buckets"]["none"].pop()
    with pytest.raises(FileError, match="validation, Popularity.* has 4 length buckets, not 5"):
        finished._check_summaries(tmp_path, results, protocols[1])


def test_what_a_run_was_trained_in_is_what_all_its_starts_recorded(
    experiment, tmp_path, monkeypatch
):
    assert recorded_environment(tmp_path) == {}
    own = workdir.environment(experiment)
    card = {"sha256": {"items": "1"}}
    for device, version in (("1 x cpu", "1.0"), ("8 x TPU", "1.1"), ("1 x cpu", "1.1")):
        start = own | {"device": device, "packages": {"jax": version}}
        monkeypatch.setattr(workdir, "environment", lambda _, start=start: start)
        workdir.claim(tmp_path, experiment, card)
    expected = own | {"device": "1 x cpu, 8 x TPU", "packages": {"jax": "1.0, 1.1"}}
    assert recorded_environment(tmp_path) == expected
