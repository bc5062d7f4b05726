"""Studies: which runs they have, and what cannot be one."""

import pytest

from launch.flags import load_experiment
from linseqrec.evaluation.metrics import MetricError
from linseqrec.studies.study import COUNTING, Arm, Claim, Study, StudyError, Table, study_runs

ARMS = (
    Arm("SASRec", "experiments/quick.py:sasrec"),
    Arm("wide", "experiments/quick.py:sasrec", {"model.width": 32}),
)
TABLES = (Table("small", "Why?", ARMS, seeds=(3, 1)), Table("one", "Why?", ARMS[:1], seeds=(3,)))
STUDY = Study("name", "Title", "About.", TABLES)


def test_the_first_seed_of_all_tables_comes_before_the_second(tmp_path):
    runs = list(study_runs(STUDY, load_experiment, tmp_path, tmp_path))
    assert [(run.table.name, run.arm.label, run.seed) for run in runs] == [
        ("small", "SASRec", 3),
        ("small", "wide", 3),
        ("one", "SASRec", 3),
        ("small", "SASRec", 1),
        ("small", "wide", 1),
    ]
    assert runs[1].experiment.model.width == 32 and runs[1].experiment.training.seed == 3


def test_tables_share_the_folder_of_a_run_and_no_other(tmp_path):
    runs = list(study_runs(STUDY, load_experiment, tmp_path, tmp_path))
    assert runs[0].folder == runs[2].folder == tmp_path / "quick" / "sasrec" / "seed=3"
    assert runs[1].folder == tmp_path / "quick" / "sasrec" / "width=32,seed=3"
    assert len({run.folder for run in runs}) == 4


def test_a_field_that_an_experiment_does_not_have_is_refused(tmp_path):
    arm = Arm("odd", "experiments/quick.py:sasrec", {"model.codes": 3})
    study = Study("name", "Title", "About.", (Table("t", "Why?", (arm,)),))
    with pytest.raises(StudyError, match=r"arm 'odd': .*sasrec has no field model\.codes"):
        list(study_runs(study, load_experiment, tmp_path, tmp_path))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Table("t", "", (ARMS[0], ARMS[0])), "two of its arms have the same label"),
        (
            lambda: Table("t", "", (Arm("a", "x.py:y", {"training.seed": 7}),)),
            "arm 'a' sets training.seed: give the table's seeds",
        ),
        (lambda: Study("n", "", "", (TABLES[0], TABLES[0])), "two of its tables have the same"),
        (
            lambda: Study("n", "", "", TABLES, (Claim("x", "other", "SASRec", ("wide",)),)),
            "no table 'other'",
        ),
        (
            lambda: Study("n", "", "", TABLES, (Claim("x", "small", "SASRec", ("huge",)),)),
            "table small has no arm 'huge'",
        ),
        (lambda: Claim("x", "small", "SASRec", "wide"), "second is 'wide': it must be a tuple"),
        (lambda: Claim("x", "small", "SASRec", 1), "second is 1: it must be a tuple"),
        (lambda: Claim("x", "small", "SASRec", COUNTING, "HR@10"), "the highest NDCG@10"),
        (lambda: Claim("x", "small", "SASRec", COUNTING, min_events=9), "the highest NDCG@10"),
        (lambda: Table("t", "", ARMS, metrics=("HR@10",)), "its metrics must hold NDCG@10"),
        (lambda: Study("n", "", "", ()), "study n has no table"),
    ],
    ids=[
        "two arms",
        "arm of one seed",
        "two tables",
        "claim's table",
        "claim's arm",
        "claim's tuple",
        "claim's number",
        "counting by HR",
        "counting of some",
        "no NDCG",
        "no table",
    ],
)
def test_a_study_that_cannot_be_is_refused(make, message):
    with pytest.raises(StudyError, match=message):
        make()


def test_an_unknown_metric_is_refused():
    with pytest.raises(MetricError):
        Table("t", "", ARMS, metrics=("HR@ten",))
