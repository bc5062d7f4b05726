"""Pages of studies: a record in words, and that the repository's pages show its records."""

import copy
import re
from pathlib import Path

import pytest

from launch import benchmark
from launch.flags import load_experiment
from linseqrec.errors import FileError
from linseqrec.files import read_json, write_json
from linseqrec.studies.archive import with_earlier_runs
from linseqrec.studies.pages import (
    analysis_folder,
    has_figure,
    number,
    results_block,
    to_figure,
    to_page,
    with_blocks,
)
from linseqrec.studies.record import make_record, read_record, run_names
from linseqrec.studies.study import StudyError, load_study, study_runs

ROOT = Path(__file__).parents[2]
RECORDS = {path.stem: read_record(path) for path in sorted((ROOT / "results").glob("*.json"))}
COST = read_json(ROOT / "docs" / "cost.json", dict)
STUDIES = sorted((ROOT / "experiments" / "studies").glob("[!_]*.py"))
STATISTICS = {"mean": 0.3, "sd": 0.01, "error": 0.02, "by_seed": [0.29, 0.31]}
COSTS = "<!-- study cost -->\n<!-- end of study -->\n"
RUN = {"commit": "abc", "device": "1 x cpu", "cpu_count": 2, "packages": {"jax": "1"}}
RECORD = {
    "name": "small",
    "title": "A <study>",
    "about": "About it.",
    "tables": [
        {
            "name": "t",
            "caption": "Why?",
            "metrics": ["NDCG@10"],
            "analyses": ["state_sink"],
            "missing": {"b": [0, 1], "c": [0, 1], "a": [2]},
            "title": "a log; split leave_one_out; synthetic data",
            "split": "test",
            "targets": 1200,
            "num_items": 50,
            "ties": "mean",
            "filters": {"none": "not filtered"},
            "models": [
                {
                    "label": "a|b",
                    "config": "experiments/x.py:a",
                    "overrides": {"model.dilations": [1, 2]},
                    "experiment": {},
                    "parameters": 12_345,
                    "metrics": {"none": {"NDCG@10": STATISTICS}},
                    "runs": [RUN | {"seed": seed, "minutes": 2.5} for seed in (0, 1)],
                }
            ],
            "baselines": [
                {"label": "Markov", "oracle": False, "metrics": {"none": {"NDCG@10": 0.4}}}
            ],
        }
    ],
    "claims": [
        {
            "text": "a is better (paper)",
            "table": "t",
            "first": "a|b",
            "second": "Markov",
            "metric": "NDCG@10",
            "margin": 0.08,
            "min_events": 1000,
            "first_mean": 0.3,
            "second_mean": 0.4,
            "effect": -0.132,
            "error_over_users": 0.02,
            "error_over_seeds": 0.01,
            "seeds": 2,
            "verdict": "does not hold",
            "reason": "",
        },
        {"text": "b is better", "table": "t", "verdict": "open", "reason": "not run"},
    ],
}


def test_a_page_says_what_was_measured_and_what_was_not():
    page = re.sub(" +", " ", to_page(RECORD))
    assert (
        "# A &lt;study&gt;" in page and "## `t`: a log; split leave_one_out; synthetic data" in page
    )
    assert "Test, 1,200 targets, all 50 items ranked, seen items not filtered, mean ties" in page
    assert "| a\\|b | 12 k | 2 | .3000 ± .0100 |" in page
    assert page.index("| Markov | | | .4000 |") > page.index("a\\|b")
    assert "Standard errors over users, at most: NDCG@10 .0200." in page
    assert "Not run yet. Seeds 0, 1: b; c. Seed 2: a." in page
    assert "- Runs: 2, 5 minutes of training; on 1 x cpu, 2 cores; jax 1." in page
    assert "- Commit abc: a\\|b." in page
    assert "- a\\|b: model.dilations=1,2." in page
    # One model is nothing to compare in a figure.
    assert "small_t.png" not in page
    record = copy.deepcopy(RECORD)
    record["tables"][0]["models"] *= 2
    picture = "![NDCG@10 of each system, seen items not filtered](small_t.png)"
    assert picture in to_page(record)
    assert "![State sink](analyses/small_t/state_sink.png)" in page
    assert (
        "| a is better (paper) | **does not hold** | a\\|b: .3000; Markov: .4000 NDCG@10, after "
        "1,000 events. a log; synthetic data | −.1320 ± .0200 ± .0100 (margin 8%) |"
    ) in page
    assert "| b is better | open: not run | | |" in page


def test_a_short_table_names_the_models_that_were_not_run():
    table = copy.deepcopy(RECORD["tables"][0])
    table["missing"] = {"a|b": [2], "b": [0, 1], "c": [0]}
    assert results_block(table, "none", short=True).endswith(" Not run yet: b, c.")
    assert "Not run yet" not in results_block(table, "none")


def search():
    """A record of two searches; what is best in validation is not what is best in the test."""
    record = copy.deepcopy(RECORD)
    (table,) = record["tables"]
    table["search"] = True
    scores = {"A, slow": (0.2, 0.4), "A, fast": (0.3, 0.1), "B, slow": (0.25, 0.2)}
    table["models"] = [
        table["models"][0]
        | {
            "label": label,
            "validation": [validation],
            "metrics": {"none": {"NDCG@10": STATISTICS | {"mean": test}}},
        }
        for label, (validation, test) in scores.items()
    ]
    return record


def test_a_search_shows_of_each_model_what_validation_selects():
    record = search()
    page = re.sub(" +", " ", to_page(record))
    results, tried = page.split("Validation NDCG@10 of all configurations tried")
    assert "| A, fast | 12 k | 2 | .1000" in results and "| B, slow |" in results
    assert "| A, slow |" not in results
    assert "| | slow | fast |" in tried
    assert "| A | .2000 | .3000 |" in tried and "| B | .2500 | |" in tried
    (axes,) = to_figure(record["tables"][0]).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["A, fast", "B, slow"]
    # What was tried has been run, though another was selected.
    record["tables"][0]["missing"] = {"A, slow": [1], "B, fast": [0]}
    block = results_block(record["tables"][0], "none", short=True)
    assert block.endswith(" Not run yet: B, fast.")


def test_a_figure_has_the_best_model_on_top_and_the_best_baseline():
    table = copy.deepcopy(RECORD["tables"][0])
    other = copy.deepcopy(table["models"][0])
    other["label"] = "best"
    other["metrics"]["none"]["NDCG@10"] = STATISTICS | {"mean": 0.35}
    table["models"] = [other, *table["models"]]
    worse = {"label": "Popularity", "oracle": False, "metrics": {"none": {"NDCG@10": 0.1}}}
    table["baselines"] = [worse, *table["baselines"]]
    (axes,) = to_figure(table).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a|b", "best"]
    assert [text.get_text() for text in axes.texts] == [" Markov"]
    drawn = [container.lines[0].get_xdata()[0] for container in axes.containers]
    assert drawn == [0.3, 0.35]


def test_a_single_seed_is_called_one():
    record = copy.deepcopy(RECORD)
    record["tables"][0]["models"][0]["runs"].pop()
    record["claims"][0]["seeds"] = 1
    page = to_page(record)
    assert "One seed." in page and "| does not hold (one seed) |" in page


@pytest.mark.parametrize(
    ("value", "text"), [(0.12344, ".1234"), (-0.5, "−.5000"), (1.0, "1.0000"), (10.2, "10.2000")]
)
def test_a_number_has_no_zero_before_its_point(value, text):
    assert number(value) == text


def test_the_parts_of_a_page_are_made_anew():
    page = (
        "before\n<!-- study small t none -->\nformer\n<!-- end of study -->\nbetween\n"
        "<!-- study claims -->\n<!-- end of study -->\nafter\n"
    )
    made = with_blocks(page, {"small": RECORD}, COST)
    assert (
        "former" not in made
        and "**a log; split leave_one_out; synthetic data.** Test, 1,200" in made
    )
    assert "| [small](results/small.md) |" in made and "| b is better" not in made
    assert (
        "Claims that were not run, or are open after one seed: 1 of [small](results/small.md)."
        in made
    )
    assert made.startswith("before\n") and made.endswith("\nafter\n") and "\nbetween\n" in made
    assert with_blocks(made, {"small": RECORD}, COST) == made


@pytest.mark.parametrize(
    ("verdict", "seeds", "shown"), [("open", 1, False), ("open", 3, True), ("holds", 1, True)]
)
def test_what_is_open_after_one_seed_waits(verdict, seeds, shown):
    record = copy.deepcopy(RECORD)
    record["claims"][0] |= {"verdict": verdict, "seeds": seeds}
    made = with_blocks("<!-- study claims -->\n<!-- end of study -->\n", {"small": record}, COST)
    assert (record["claims"][0]["text"] in made) == shown
    assert f"after one seed: {1 if shown else 2} of [small]" in made


def test_a_part_without_its_end_takes_no_other_text():
    part = "<!-- study small t none -->\n"
    page = f"{part}a chapter\n{part}<!-- end of study -->\n"
    assert with_blocks(page, {"small": RECORD}, COST).startswith(
        f"{part}a chapter\n{part}\n**a log"
    )


def test_a_claim_is_shown_as_it_is_but_for_code():
    record = copy.deepcopy(RECORD)
    record["claims"][1]["text"] = "<b>x</b> | `world`"
    assert "| &lt;b&gt;x&lt;/b&gt; \\| `world` | open: not run |" in to_page(record)


def broken(path, value):
    record = copy.deepcopy(RECORD)
    *parents, last = path
    place = record
    for name in parents:
        place = place[name]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return record


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (broken(("tables", 0, "split"), None), r"it has no tables\[0\].split"),
        (broken(("tables", 0, "targets"), "many"), r"tables\[0\].targets is \"many\""),
        (broken(("tables", 0, "metrics"), ["HR@10"]), "it has no none.HR@10"),
        (broken(("tables", 0, "filters"), {"all": "filtered"}), "it has no all"),
        (broken(("tables", 0, "search"), True), r"it has no t.models\[0\].validation"),
        (broken(("claims", 0, "effect"), None), "it has no effect"),
        (broken(("claims", 0, "table"), "u"), "it has no table 'u'"),
    ],
    ids=["no split", "targets", "metric", "filter", "validation", "effect", "table"],
)
def test_a_damaged_record_is_named(tmp_path, record, message):
    path = tmp_path / "small.json"
    write_json(path, record)
    with pytest.raises(FileError, match=f"small.json is damaged: .*{message}"):
        read_record(path)


@pytest.mark.parametrize("words", ["small", "other t none", "small u none"])
def test_a_part_of_no_record_is_refused(words):
    page = f"<!-- study {words} -->\n<!-- end of study -->\n"
    with pytest.raises(StudyError, match=f"<!-- study {words} -->: write STUDY TABLE FILTER"):
        with_blocks(page, {"small": RECORD}, COST)


# ---------------------------------------------------------------------------- the repository's
@pytest.mark.parametrize("name", RECORDS)
def test_a_page_of_the_repository_shows_its_record(name):
    assert (ROOT / "results" / f"{name}.md").read_text() == to_page(RECORDS[name])
    for table in RECORDS[name]["tables"]:
        assert (ROOT / "results" / f"{name}_{table['name']}.png").exists() == has_figure(table)
        for analysis in table["analyses"] if table["models"] else ():
            assert (
                ROOT / "results" / analysis_folder(RECORDS[name], table) / f"{analysis}.png"
            ).exists()


def test_the_table_of_costs_is_that_of_the_benchmark():
    growth = [row for row in COST["suites"]["models"] if row["case"].startswith("forward, by")]
    table = re.sub(" +", " ", with_blocks(COSTS, {}, COST))
    for row in growth:
        exponent = f"{row['extra']['exponent of T']:.2f}"
        in_words, in_table = f"{row['variant']} {exponent}", f"| {row['variant']} | {exponent} |"
        assert (in_words if row["variant"] in ("SASRec", "HSTU") else in_table) in table
    assert "| cheaper than HSTU from T |" in table and len(growth) > 10


def test_the_page_of_costs_is_that_of_the_benchmark():
    assert (ROOT / "docs" / "cost.md").read_text() == benchmark.page(COST)


@pytest.mark.parametrize("page", ["README.md", "RESULTS.md"])
def test_the_repository_shows_its_records(page):
    text = (ROOT / page).read_text()
    assert with_blocks(text, RECORDS, COST) == text


@pytest.mark.parametrize("path", STUDIES, ids=[path.stem for path in STUDIES])
def test_the_recorded_runs_of_a_study_are_those_that_it_trains_today(path):
    """After a change of an experiment or a default, `launch.study --render --drop` drops others."""
    study, record = load_study(path), RECORDS[path.stem]
    assert study.name == path.stem
    runs = list(study_runs(study, load_experiment, Path("runs"), Path("kept")))
    joined = with_earlier_runs(make_record(study, []), record, study, runs)
    assert sorted(run_names(record) - run_names(joined)) == []


def test_a_block_of_a_table_without_runs_says_so():
    record = copy.deepcopy(RECORD)
    record["tables"][0]["models"] = []
    made = with_blocks(
        "<!-- study small t none -->\n<!-- end of study -->", {"small": record}, COST
    )
    assert "Table t of [small](results/small.md): not run yet." in made
