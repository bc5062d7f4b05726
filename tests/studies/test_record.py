"""Records of studies: what the runs of a table give, and the verdicts on claims."""

import dataclasses
import itertools
import json
import math
import shutil
import statistics

import jax
import numpy as np
import pytest
from flax import nnx

from linseqrec.config_json import override
from linseqrec.files import write_json
from linseqrec.studies.archive import with_earlier_runs
from linseqrec.studies.record import make_record, run_names, short_commit
from linseqrec.studies.study import COUNTING, Arm, Claim, Study, StudyError, StudyRun, Table
from tests.runs import conftest as runs
from tests.runs.conftest import EXPERIMENT, TARGETS

save_run = runs.save_run

ARMS = (Arm("narrow", "x.py:sasrec"), Arm("wide", "x.py:sasrec", {"model.width": 32}))
LENGTHS = np.random.default_rng(9).integers(1, 300, TARGETS)


def study_of(claims=()):
    table = Table("t", "Why?", ARMS, metrics=("HR@10", "NDCG@10"), search=True)
    return Study("name", "Title", "About.", (table,), tuple(claims))


def planned_runs(study, folder):
    """The runs of a study of one table, each in a folder of its own."""
    runs = []
    (table,) = study.tables
    for arm, seed in itertools.product(ARMS, table.seeds):
        overrides = {**arm.overrides, "training.seed": seed}
        workdir = folder / arm.label / str(seed)
        experiment = override(EXPERIMENT, overrides)
        runs.append(StudyRun(table, arm, seed, overrides, experiment, workdir, workdir))
    return runs


@pytest.fixture
def make(save_run, tmp_path):
    """make({label: [ranks of seed 0, ...]}, claims): a record of runs with these ranks."""

    def made(ranks, claims=(), **saved):
        study = study_of(claims)
        planned = planned_runs(study, tmp_path)
        for run in planned:
            own = dict(enumerate(ranks.get(run.arm.label, []))).get(run.seed)
            if own is not None and not run.folder.exists():
                of_filters = dict.fromkeys(("none", "all"), own)
                save_run(f"{run.arm.label}/{run.seed}", run.experiment, of_filters, **saved)
                path = run.folder / "results.json"
                results = json.loads(path.read_text())
                environment = {"git": "0123456789", "device": "1 x cpu", "cpu_count": 2}
                write_json(path, results | {"epoch": 3.0, "environment": environment})
        return make_record(study, planned)

    return made


def hits(*, of, seed):
    """Ranks of which about the share `of` are hits at 10."""
    drawn = np.random.default_rng(seed).random(TARGETS)
    return np.where(drawn < of, 1.0, 50.0)


def judged(record):
    (claim,) = record["claims"]
    return claim


def test_a_model_has_mean_deviation_and_error(make):
    ranks = [hits(of=share, seed=seed) for seed, share in enumerate((0.2, 0.3, 0.4))]
    record = make({"narrow": ranks})
    (model,) = record["tables"][0]["models"]
    got = model["metrics"]["none"]["HR@10"]
    means = [float((own <= 10).mean()) for own in ranks]
    # Two targets per user: a user's targets are drawn together.
    by_user = [
        sum(float(own[i] <= 10) for own in ranks for i in (user, user + 1)) / 6
        for user in range(0, TARGETS, 2)
    ]
    assert got["by_seed"] == pytest.approx(means)
    assert got["mean"] == pytest.approx(statistics.mean(means))
    assert got["sd"] == pytest.approx(statistics.stdev(means))
    assert got["error"] == pytest.approx(statistics.stdev(by_user) / math.sqrt(TARGETS / 2))
    built = nnx.state(EXPERIMENT.model.build(1000, rngs=nnx.Rngs(0)), nnx.Param)
    assert model["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(built))
    assert model["runs"][0] | {"minutes": None} == {
        "seed": 0,
        "commit": "0123456",
        "device": "1 x cpu",
        "cpu_count": 2,
        "packages": None,
        "epoch": 3.0,
        "minutes": None,
    }
    # The runs of these tests have the same ranks in validation.
    assert model["validation"] == model["metrics"]["none"]["NDCG@10"]["by_seed"]
    assert record["tables"][0]["missing"] == {"wide": [0, 1, 2]}
    assert run_names(record) == {f"t, narrow, seed {seed}" for seed in range(3)}
    assert [each["label"] for each in record["tables"][0]["baselines"]] == ["Markov"]


def test_a_table_without_a_run_has_all_of_its_arms_missing(make):
    (table,) = make({})["tables"]
    assert table["models"] == [] and set(table["missing"]) == {"narrow", "wide"}


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [(0.5, 0.3, "holds"), (0.3, 0.5, "does not hold"), (0.4, 0.4, "open")],
)
def test_a_claim_is_judged_by_two_standard_errors(make, first, second, verdict):
    claim = Claim("x", "t", "narrow", ("wide",), metric="HR@10")
    ranks = {
        "narrow": [hits(of=first, seed=seed) for seed in range(3)],
        "wide": [hits(of=second, seed=10 + seed) for seed in range(3)],
    }
    got = judged(make(ranks, [claim]))
    assert got["verdict"] == verdict and got["seeds"] == 3 and got["second"] == "wide"
    values = {label: np.array([own <= 10 for own in each], float) for label, each in ranks.items()}
    means = {label: own.mean(1) for label, own in values.items()}
    difference = values["narrow"].mean(0) - values["wide"].mean(0)
    # Two targets per user: a user's targets are drawn together.
    by_user = difference.reshape(-1, 2).mean(1)
    assert got["effect"] == pytest.approx(difference.mean())
    assert got["error_over_users"] == pytest.approx(by_user.std(ddof=1) / math.sqrt(len(by_user)))
    assert got["error_over_seeds"] == pytest.approx(
        math.sqrt(sum(own.var(ddof=1) / 3 for own in means.values()))
    )


def test_seeds_that_disagree_leave_a_claim_open(make):
    claim = Claim("x", "t", "narrow", ("wide",), metric="HR@10")
    ranks = {
        "narrow": [hits(of=share, seed=1) for share in (0.2, 0.5, 0.9)],
        "wide": [hits(of=0.35, seed=1)] * 3,
    }
    got = judged(make(ranks, [claim]))
    assert got["effect"] > 2 * got["error_over_users"] and got["verdict"] == "open"


def test_a_margin_has_to_be_exceeded(make):
    ranks = {"narrow": [hits(of=0.52, seed=1)], "wide": [hits(of=0.5, seed=1)]}
    got = judged(make(ranks, [Claim("x", "t", "narrow", ("wide",), "HR@10")]))
    assert got["effect"] > 0 and got["seeds"] == 1 and got["error_over_seeds"] is None
    got = judged(make(ranks, [Claim("x", "t", "narrow", ("wide",), "HR@10", margin=0.5)]))
    first, second = ((ranks[label][0] <= 10).mean() for label in ("narrow", "wide"))
    assert got["effect"] == pytest.approx(first - 1.5 * second)
    assert got["verdict"] == "does not hold"


def test_only_targets_after_enough_events_count(make):
    ranks = {"narrow": [np.where(LENGTHS >= 200, 1.0, 50.0)], "wide": [np.full(TARGETS, 50.0)]}
    got = judged(make(ranks, [Claim("x", "t", "narrow", ("wide",), "HR@10", min_events=200)]))
    assert got["effect"] == 1.0 and got["targets"] == (LENGTHS >= 200).sum()
    got = judged(make(ranks, [Claim("x", "t", "narrow", ("wide",), min_events=9_999)]))
    assert got["verdict"] == "open" and got["reason"] == "no target after 9999 events"


def test_a_single_user_leaves_a_claim_open(make):
    """Its error would be no number, which no record can hold."""
    longest = int(LENGTHS.max())
    users = np.unique(np.flatnonzero(longest <= LENGTHS) // 2)
    assert len(users) == 1
    ranks = {"narrow": [np.full(TARGETS, 1.0)], "wide": [np.full(TARGETS, 50.0)]}
    claim = Claim("x", "t", "narrow", ("wide",), "HR@10", min_events=longest)
    got = judged(make(ranks, [claim]))
    assert got["verdict"] == "open"
    assert got["reason"] == f"one user's targets after {longest} events"


def test_a_run_of_another_seed_and_runs_in_two_precisions_are_refused(make, tmp_path):
    ranks = {"narrow": [hits(of=0.5, seed=seed) for seed in range(2)]}
    make(ranks)
    folder = tmp_path / "narrow"
    for seed, dtype in ((0, "bfloat16"), (1, "float32")):
        path = folder / str(seed) / "results.json"
        results = json.loads(path.read_text())
        environment = results["environment"] | {"compute_dtype": dtype}
        write_json(path, results | {"environment": environment})
    with pytest.raises(StudyError, match="runs of narrow computed in bfloat16 and float32"):
        make(ranks)
    shutil.copytree(folder / "0", folder / "2")
    with pytest.raises(StudyError, match="training.seed: 2 in the study, 0 in the run"):
        make(ranks | {"narrow": ranks["narrow"] * 2})


def test_the_best_counting_baseline_or_a_published_figure_is_a_side(make):
    ranks = {"narrow": [hits(of=0.5, seed=1)]}
    better = np.where(np.arange(TARGETS) % 5 == 0, 1.0, 50.0)
    counting = {"Markov": {"none": better}, "Popularity": {"none": np.full(TARGETS, 50.0)}}
    claim = Claim("x", "t", "narrow", COUNTING)
    got = judged(make(ranks, [claim], counting=counting))
    assert (got["second"], got["second_mean"], got["verdict"]) == ("Markov", 0.2, "holds")
    got = judged(make(ranks, [Claim("x", "t", "narrow", 0.9, "HR@10")]))
    assert got["second"] == "published" and got["second_mean"] == pytest.approx(0.9)
    assert got["verdict"] == "does not hold"


def test_a_claim_whose_runs_are_missing_is_open(make):
    got = judged(make({"narrow": [hits(of=0.5, seed=1)]}, [Claim("x", "t", "narrow", ("wide",))]))
    assert (got["verdict"], got["reason"]) == ("open", "not run")
    # Runs of earlier versions hold no ranks of baselines.
    got = judged(make({"narrow": [hits(of=0.5, seed=1)]}, [Claim("x", "t", "narrow", COUNTING)]))
    assert got["reason"] == "the runs hold no ranks of baselines"


def test_a_filter_that_the_runs_do_not_have_is_refused(make):
    claim = Claim("x", "t", "narrow", ("wide",), filter_seen="every")
    with pytest.raises(StudyError, match="the runs have no filter 'every' of seen items"):
        make({"narrow": [hits(of=0.5, seed=1)], "wide": [hits(of=0.5, seed=1)]}, [claim])


def test_few_seeds_count_for_more(make):
    """Two seeds against counting: one degree of freedom, 13.97 standard errors instead of 2."""
    ranks = {"narrow": [hits(of=0.5, seed=1), hits(of=0.6, seed=1)]}
    baseline = {"Markov": {"none": hits(of=0.28, seed=1)}}
    got = judged(make(ranks, [Claim("x", "t", "narrow", COUNTING)], counting=baseline))
    assert got["effect"] > 2 * math.hypot(got["error_over_users"], got["error_over_seeds"])
    assert got["verdict"] == "open"


def test_seeds_that_vary_on_one_side_only_count_as_few(make):
    """One of the two sides varies over its two seeds: one degree of freedom (Welch), not two."""
    steady, varying = hits(of=0.9, seed=1), [hits(of=0.5, seed=1), hits(of=0.6, seed=1)]
    claim = Claim("x", "t", "wide", ("narrow",))
    got = judged(make({"narrow": varying, "wide": [steady, steady]}, [claim]))
    assert 4.53 < got["effect"] / got["error_over_seeds"] < 13.97
    assert got["verdict"] == "open"


def test_the_seeds_of_one_side_count_beside_a_single_seed_of_the_other(make):
    ranks = {"narrow": [hits(of=0.5, seed=1), hits(of=0.6, seed=1)], "wide": [hits(of=0.9, seed=1)]}
    got = judged(make(ranks, [Claim("x", "t", "wide", ("narrow",))]))
    assert got["effect"] > 2 * got["error_over_users"] and got["error_over_seeds"] is None
    assert (got["verdict"], got["seeds"]) == ("open", 1)


@pytest.mark.parametrize(
    ("described", "commit"),
    [
        ("0123456789ab", "0123456"),
        ("0123456789ab-dirty", "0123456-dirty"),
        ("v1.0-3-g0123456789ab", "0123456"),
        ("v1.0.0", ""),
        ("", ""),
    ],
    ids=["plain", "changed", "after a tag", "a tag", "none"],
)
def test_a_commit_is_short_and_says_that_the_code_was_changed(described, commit):
    assert short_commit(described) == commit


@pytest.mark.parametrize(
    ("dtype", "refused"), [("float32", False), ("bfloat16", True)], ids=["the same", "another"]
)
def test_auto_is_the_dtype_of_the_device_that_the_run_was_on(make, tmp_path, dtype, refused):
    """The study says "auto", and the runs were on a CPU."""
    ranks = {"narrow": [hits(of=0.5, seed=1)]}
    make(ranks)
    path = tmp_path / "narrow" / "0" / "config.json"
    config = json.loads(path.read_text())
    assert config["model"]["dtype"] == "auto"
    config["model"]["dtype"] = dtype
    write_json(path, config)
    if refused:
        with pytest.raises(StudyError, match=r"model\.dtype: 'auto' in the study, 'bfloat16'"):
            make(ranks)
    else:
        assert make(ranks)["tables"][0]["models"]


def test_a_run_of_another_configuration_is_refused(make, save_run, tmp_path):
    save_run("narrow/1", override(EXPERIMENT, {"training.seed": 1, "model.width": 16}))
    with pytest.raises(StudyError, match=r"model\.width: 64 in the study, 16 in the run"):
        make({"narrow": [hits(of=0.5, seed=1)]})


@pytest.fixture
def joined(make, tmp_path):
    """joined(earlier, here, claims): the record of ranks here, and of a record or ranks before."""

    def made(earlier, here, claims=(), **saved):
        if "tables" not in earlier:
            earlier = make(earlier, claims, **saved)
            for arm in ARMS:
                shutil.rmtree(tmp_path / arm.label, ignore_errors=True)
        study = study_of(claims)
        runs = planned_runs(study, tmp_path)
        return with_earlier_runs(make(here, claims, **saved), earlier, study, runs)

    return made


def test_a_table_without_a_run_here_stays_as_recorded(make, joined, tmp_path):
    claim = Claim("wide is better", "t", "wide", ("narrow",), metric="HR@10")
    ranks = {"narrow": [hits(of=0.3, seed=0)], "wide": [hits(of=0.5, seed=1), hits(of=0.5, seed=2)]}
    earlier = make(ranks, [claim])
    shutil.rmtree(tmp_path / "narrow")
    shutil.rmtree(tmp_path / "wide")
    assert joined(earlier, {}, [claim]) == earlier
    assert earlier["tables"][0]["missing"] == {"narrow": [1, 2], "wide": [2]}
    # Another claim of the same words is judged anew.
    other = joined(earlier, {}, [dataclasses.replace(claim, metric="NDCG@10")])
    assert judged(other)["metric"] == "NDCG@10" and not judged(other)["paired"]
    other = joined(earlier, {}, [dataclasses.replace(claim, second=0.9)])
    assert (judged(other)["second"], judged(other)["verdict"]) == ("published", "does not hold")


def test_a_recorded_run_that_is_repeated_here_keeps_its_verdict(make, joined, tmp_path):
    """The same ranks by another commit: the claim stays judged over pairs of users."""
    claim = Claim("wide is better", "t", "wide", ("narrow",), metric="HR@10")
    narrow, wide = hits(of=0.3, seed=0), hits(of=0.5, seed=1)
    earlier = make({"narrow": [narrow], "wide": [wide]}, [claim])
    (recorded,) = earlier["tables"][0]["models"][1]["runs"]
    recorded["commit"] = "1234567"
    shutil.rmtree(tmp_path / "narrow")
    again = joined(earlier, {"wide": [wide]}, [claim])
    assert again["claims"] == earlier["claims"]
    assert again["tables"][0]["models"][1]["runs"] != [recorded]
    shutil.rmtree(tmp_path / "wide")
    assert not judged(joined(earlier, {"wide": [hits(of=0.6, seed=1)]}, [claim]))["paired"]


def test_models_here_join_the_recorded_ones(joined):
    claim = Claim("wide is better", "t", "wide", ("narrow",), metric="HR@10")
    narrow, wide = hits(of=0.3, seed=0), hits(of=0.5, seed=1)
    alone = Claim("wide is good", "t", "wide", 0.1, metric="HR@10")
    record = joined({"narrow": [narrow]}, {"wide": [wide]}, [claim, alone])
    (table,) = record["tables"]
    assert [model["label"] for model in table["models"]] == ["narrow", "wide"]
    assert table["missing"] == {"narrow": [1, 2], "wide": [1, 2]}
    got, by_itself = record["claims"]
    assert by_itself["paired"]
    shares = [float((own <= 10).mean()) for own in (narrow, wide)]
    assert got["verdict"] == "holds" and not got["paired"]
    assert got["effect"] == pytest.approx(shares[1] - shares[0])
    errors = [model["metrics"]["none"]["HR@10"]["error"] for model in table["models"]]
    assert got["error_over_users"] == pytest.approx(math.hypot(*errors))
    assert joined(record, {"wide": [wide]}, [claim, alone]) == record


def test_seeds_here_join_the_recorded_ones(make, joined, tmp_path):
    ranks = [hits(of=share, seed=seed) for seed, share in enumerate((0.2, 0.3, 0.4))]
    errors = []
    for part in ([None, ranks[1]], [ranks[0], None, ranks[2]]):
        earlier = make({"narrow": part})
        (model,) = earlier["tables"][0]["models"]
        errors.append(model["metrics"]["all"]["HR@10"]["error"])
        shutil.rmtree(tmp_path / "narrow")
    record = joined(earlier, {"narrow": [None, ranks[1]]})
    (table,) = record["tables"]
    (model,) = table["models"]
    got, means = model["metrics"]["all"]["HR@10"], [float((own <= 10).mean()) for own in ranks]
    assert [run["seed"] for run in model["runs"]] == [0, 1, 2]
    assert got["by_seed"] == pytest.approx(means)
    assert got["mean"] == pytest.approx(statistics.fmean(means))
    assert got["sd"] == pytest.approx(statistics.stdev(means))
    assert got["error"] == pytest.approx((errors[0] + 2 * errors[1]) / 3)
    assert model["validation"] == model["metrics"]["none"]["NDCG@10"]["by_seed"]
    assert joined(record, {"narrow": [None, ranks[1]]}) == record


@pytest.mark.parametrize(
    ("claim", "reason"),
    [
        (Claim("x", "t", "wide", ("narrow",), min_events=200), "cannot be paired"),
        (Claim("x", "t", "narrow", COUNTING), "cannot be paired"),
        (Claim("x", "t", "wide", ("narrow",), metric="MRR@10"), "cannot be paired"),
        (Claim("x", "t", "narrow", 0.9), ""),
    ],
    ids=["long histories", "counting", "another metric", "a published figure"],
)
def test_what_a_record_does_not_hold_is_not_judged_by_it(joined, claim, reason):
    """Seeds on two machines: a record has neither values by target nor errors of baselines."""
    narrow = hits(of=0.3, seed=0)
    ranks = {"narrow": [None, narrow], "wide": [narrow]}
    counting = {"Markov": {"none": np.full(TARGETS, 50.0)}}
    got = judged(joined({"narrow": [narrow]}, ranks, [claim], counting=counting))
    assert reason in got["reason"] and (got["verdict"] == "open") == bool(reason)


def test_a_model_whose_arm_has_changed_is_not_taken_from_the_earlier_record(make, joined, tmp_path):
    earlier = make({"narrow": [hits(of=0.3, seed=0)], "wide": [hits(of=0.5, seed=1)]})
    shutil.rmtree(tmp_path / "wide")
    shutil.rmtree(tmp_path / "narrow")
    earlier["tables"][0]["models"][1]["overrides"] = {"model.width": 48}
    assert run_names(joined(earlier, {})) == {"t, narrow, seed 0"}


def test_what_was_recorded_before_a_table_was_a_search_is_not_taken(make, joined, tmp_path):
    """Nothing says what validation would select of it."""
    earlier = make({"narrow": [hits(of=0.3, seed=0)], "wide": [hits(of=0.5, seed=1)]})
    shutil.rmtree(tmp_path / "wide")
    shutil.rmtree(tmp_path / "narrow")
    del earlier["tables"][0]["models"][1]["validation"]
    assert run_names(joined(earlier, {})) == {"t, narrow, seed 0"}


def test_a_model_whose_experiment_has_changed_is_not_taken_from_the_earlier_record(
    make, joined, tmp_path, monkeypatch
):
    """The arm reads the same, and the experiment's file says another rate."""
    earlier = make({"narrow": [hits(of=0.3, seed=0)]})
    shutil.rmtree(tmp_path / "narrow")
    assert joined(earlier, {})["tables"][0]["models"]
    faster = dataclasses.replace(EXPERIMENT.optimizer, learning_rate=0.5)
    experiment = dataclasses.replace(EXPERIMENT, optimizer=faster)
    monkeypatch.setattr("tests.studies.test_record.EXPERIMENT", experiment)
    (table,) = joined(earlier, {})["tables"]
    assert table["models"] == [] and table["missing"]["narrow"] == [0, 1, 2]


def test_runs_with_other_metrics_do_not_join(make, joined, tmp_path):
    """What leaves the record so is named by `launch.study`."""
    counting = {"Markov": {"none": hits(of=0.2, seed=5), "all": hits(of=0.2, seed=5)}}
    earlier = make({"narrow": [None, hits(of=0.3, seed=1)]}, counting=counting)
    shutil.rmtree(tmp_path / "narrow")
    (table,) = earlier["tables"]
    table["metrics"] = ["HR@10"]
    for row in (*table["models"], *table["baselines"]):
        for metrics in row["metrics"].values():
            del metrics["NDCG@10"]
    one = {"narrow": [hits(of=0.4, seed=0)]}
    assert run_names(joined(earlier, one, counting=counting)) == {"t, narrow, seed 0"}
    shutil.rmtree(tmp_path / "narrow")
    with pytest.raises(StudyError, match=r"measured differently \(metrics, Markov\): --drop"):
        joined(earlier, {"wide": [hits(of=0.4, seed=0)]}, counting=counting)


def test_runs_that_were_measured_differently_do_not_join(make, joined, tmp_path):
    saved = {"counting": {"Markov": {"none": hits(of=0.2, seed=5), "all": hits(of=0.2, seed=5)}}}
    earlier = make({"narrow": [hits(of=0.3, seed=0)]}, **saved)
    shutil.rmtree(tmp_path / "narrow")
    wide = {"wide": [hits(of=0.5, seed=1)]}
    (table,) = earlier["tables"]
    assert len(joined(earlier, wide, **saved)["tables"][0]["models"]) == 2
    (markov,) = [each for each in table["baselines"] if each["label"] == "Markov"]
    markov["metrics"]["all"]["HR@10"] += 0.0001
    assert len(joined(earlier, wide, **saved)["tables"][0]["models"]) == 2
    markov["metrics"]["all"]["HR@10"] += 0.001
    with pytest.raises(StudyError, match=r"measured differently \(Markov\): --drop"):
        joined(earlier, wide, **saved)
    table["targets"] += 1
    with pytest.raises(StudyError, match=r"measured differently \(targets, Markov\)"):
        joined(earlier, wide, **saved)
