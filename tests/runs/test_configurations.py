import dataclasses
import json

import numpy as np
import pytest

from linseqrec.errors import RunsError
from linseqrec.files import read_json, write_json
from linseqrec.models.gated_deltanet import GatedDeltaNetConfig
from linseqrec.runs.configurations import (
    configuration_labels,
    deciding_fields,
    differing_fields,
    group_by_configuration,
    is_still,
)
from linseqrec.runs.finished import find_runs
from tests.runs.conftest import EXPERIMENT, TARGETS, changed

EPOCHS = 8


def groups(folder):
    return group_by_configuration(find_runs([folder])[0])


def test_runs_that_differ_in_their_seed_only_are_one_configuration(save_run, tmp_path):
    for seed in (2, 0, 1):
        save_run(f"run{seed}", changed(training={"seed": seed}))
    save_run("wide", changed(model={"width": 128}, training={"seed": 1}))
    save_run("fast", changed(optimizer={"learning_rate": 0.01}))
    save_run("other", changed(name="Gated DeltaNet", model=GatedDeltaNetConfig()))
    assert {
        group.label: [run.experiment.training.seed for run in group.runs]
        for group in groups(tmp_path)
    } == {
        # What two of three have goes unsaid.
        "SASRec": [0, 1, 2],
        "SASRec width=128": [1],
        "SASRec learning_rate=0.01": [0],
        # Alone of its name.
        "Gated DeltaNet": [0],
    }


def test_what_changes_no_result_sets_no_runs_apart(save_run, tmp_path):
    small = GatedDeltaNetConfig()
    quick = GatedDeltaNetConfig(chunk_size=2 * small.chunk_size)
    save_run("a", changed(name="Gated DeltaNet", model=small, training={"num_epochs": EPOCHS}))
    save_run(
        "b",
        changed(
            name="Gated DeltaNet",
            model=quick,
            training={"seed": 1, "log_every": 7, "num_epochs": float(EPOCHS)},
            data={"folder": "elsewhere"},
            evaluation={"batch_size": 3},
            mesh={"data": 1},
        ),
    )
    (group,) = groups(tmp_path)
    assert (group.label, len(group.runs)) == ("Gated DeltaNet", 2)
    assert differing_fields([run.experiment for run in group.runs]) == {}


def test_what_auto_meant_sets_runs_apart(save_run, tmp_path):
    """The same command on a CPU and on a GPU: two precisions are not two seeds."""
    for seed, dtype in enumerate(("float32", "float32", "bfloat16")):
        path = save_run(f"run{seed}", changed(training={"seed": seed})) / "results.json"
        write_json(path, read_json(path) | {"environment": {"compute_dtype": dtype}})
    assert {group.label: len(group.runs) for group in groups(tmp_path)} == {
        "SASRec dtype=float32": 2,
        "SASRec dtype=bfloat16": 1,
    }


def test_a_value_that_is_no_more_usual_than_another_is_said(save_run, tmp_path):
    for width in (32, 64):
        for rate in (0.01, 0.001):
            save_run(
                f"{width} {rate}",
                changed(model={"width": width}, optimizer={"learning_rate": rate}),
            )
    assert {group.label for group in groups(tmp_path)} == {
        f"SASRec width={width} learning_rate={rate}" for width in (32, 64) for rate in (0.01, 0.001)
    }


def test_a_run_that_would_count_twice_is_refused(save_run, tmp_path):
    save_run("a")
    save_run("b")
    with pytest.raises(RunsError, match="a and .*b are the same configuration and seed"):
        groups(tmp_path)


def test_a_field_of_one_model_alone_is_no_difference():
    deltanet = changed(name="Gated DeltaNet", model=GatedDeltaNetConfig(), training={"seed": 3})
    found = differing_fields([EXPERIMENT, deltanet, changed(data={"length": 20})])
    assert found["name"] == ["SASRec", "Gated DeltaNet", "SASRec"]
    assert found["data.length"] == [50, 50, 20]
    assert "model.convolution_width" not in found and "training.seed" not in found


def test_metrics_by_seed_and_by_target(save_run, tmp_path):
    ranks = [np.tile(values, TARGETS // 4) for values in ([1.0, 3, 10, 11], [2.0, 10.5, 1, 1])]
    for seed, values in enumerate(ranks):
        save_run(f"{seed}", changed(training={"seed": seed}), {"none": values, "all": values - 0.5})
    (group,) = groups(tmp_path)
    np.testing.assert_allclose(group.by_seed("none", "HR@10"), [0.75, 0.75])
    np.testing.assert_allclose(group.per_target("none", "HR@10")[:4], [1, 0.5, 1, 0.5])
    np.testing.assert_allclose(group.by_seed("all", "HR@10"), [0.75, 1.0])
    gains = [(1 + 1 / np.log2(3)) / 2, 0.5 / 2, (1 / np.log2(11) + 1) / 2, 0.5]
    np.testing.assert_allclose(group.per_target("none", "NDCG@10")[:4], gains)


def test_recorded_fields_are_of_what_decides_the_results():
    recorded = json.loads(json.dumps(deciding_fields(EXPERIMENT)))
    for same in (
        changed(training={"seed": 7, "log_every": 3}, note="x", data={"folder": "y"}),
        changed(training={"num_epochs": 10}, optimizer={"learning_rate": 1e-3}),
    ):
        assert is_still(recorded, same)
    for other in (
        changed(training={"num_epochs": 11.0}),
        changed(optimizer={"learning_rate": 2e-3}),
        changed(evaluation={"filter_seen": ("all",)}),
        changed(model=GatedDeltaNetConfig()),
    ):
        assert not is_still(recorded, other)


def test_a_record_is_not_of_an_experiment_whose_default_has_changed():
    """The experiment leaves patience at its default, which was another then."""
    recorded = deciding_fields(EXPERIMENT)
    assert not is_still(recorded | {"training.patience": 3}, EXPERIMENT)


def test_a_field_newer_than_the_record_must_have_its_default():
    recorded = deciding_fields(EXPERIMENT) | {"training.a_field_of_the_past": 1}
    del recorded["training.patience"]
    assert is_still(recorded, EXPERIMENT)
    assert not is_still(recorded, changed(training={"patience": 3}))


def test_a_model_of_the_same_name_from_elsewhere_is_another():
    """A user's copy of a model, with other code behind it."""

    @dataclasses.dataclass(frozen=True)
    class Mine(GatedDeltaNetConfig):
        pass

    Mine.__qualname__ = GatedDeltaNetConfig.__qualname__
    own, copied = changed(model=GatedDeltaNetConfig()), changed(model=Mine())
    assert not is_still(deciding_fields(own), copied)
    assert list(differing_fields([own, copied])) == ["model"]
    assert len(set(configuration_labels([own, copied]))) == 2
