import csv
import io
import itertools
import json
import re
import shutil
import statistics

import numpy as np
import pytest

from linseqrec.errors import RunsError
from linseqrec.evaluation.metrics import MetricError
from linseqrec.evaluation.ranks import in_words
from linseqrec.files import read_arrays, write_json
from linseqrec.runs import report as report_module
from linseqrec.runs.comparisons import num_samples
from linseqrec.runs.figures import run_figures
from linseqrec.runs.report import make_report, to_markdown, write_report
from linseqrec.runs.results import seal_results
from linseqrec.training import saved_run, workdir
from tests.runs.conftest import EXPERIMENT, TARGETS, changed

RATES = (0.01, 0.001, 0.0001)


@pytest.fixture
def ranks(save_run, tmp_path):
    """Three learning rates of three seeds, the first the worst; and one run unfinished."""
    rng, made = np.random.default_rng(0), {}
    for (index, rate), seed in itertools.product(enumerate(RATES), range(3)):
        drawn = rng.integers(1, 40 - 6 * index, (2, TARGETS)).astype(float)
        made[rate, seed] = dict(zip(("none", "all"), drawn, strict=True))
        save_run(
            f"sweep/{rate},{seed}",
            changed(
                optimizer={"learning_rate": rate},
                training={"seed": seed},
                note="20 % of timestamps imputed" if rate == RATES[0] else "",
            ),
            made[rate, seed],
        )
    workdir.claim(tmp_path / "sweep" / "unfinished", changed(training={"seed": 7}), {})
    return made


def cells(text):
    """A report's tables without the spaces that align their columns."""
    return re.sub(" +", " ", text)


def gains(values, metric):
    hits = [rank <= 10 for rank in values]
    if metric == "HR@10":
        return np.array(hits, float)
    return np.array([hit / np.log2(rank + 1) for hit, rank in zip(hits, values, strict=True)])


def test_tables_hold_mean_and_deviation_over_seeds_and_baselines_once(ranks, tmp_path):
    report = make_report([tmp_path / "sweep"])
    text = cells(to_markdown(report))
    assert text.startswith(
        "# generated world 'quick' (synthetic data); split leave_one_out; "
        "20 % of timestamps imputed\n"
    )
    for which in ("none", "all"):
        section = text.split(f"## Seen items {in_words(which)}")[1]
        for rate in RATES:
            numbers = []
            for metric in ("HR@10", "NDCG@10"):
                values = [gains(ranks[rate, seed][which], metric).mean() for seed in range(3)]
                numbers.append(f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}")
            (row,) = (
                line
                for line in section.split("\n## ")[0].splitlines()
                if f"learning_rate={rate} |" in line
            )
            validation = numbers[1].partition(" ")[0]
            assert row.endswith(f"| 3 | {validation} | {numbers[0]} | {numbers[1]} |")
    assert text.count("| Markov | | | 1.0000 | 0.4307 |") == 2
    assert f"- {tmp_path}/sweep/unfinished: stopped, nothing logged yet" in text
    assert "3 configurations, 9 runs" in text


def test_validation_selects_and_the_test_split_does_not(save_run, tmp_path):
    ranks = {rank: {"none": np.full(TARGETS, rank)} for rank in (1.0, 2.0, 3.0, 4.0)}
    for rate, test, validation in ((0.1, 1.0, 3.0), (0.2, 2.0, 1.0)):
        changes = changed(name="A", optimizer={"learning_rate": rate})
        save_run(f"{rate}", changes, ranks[test], validation=ranks[validation])
    save_run("b", changed(name="B"), ranks[4.0], validation=ranks[2.0])
    report = make_report([tmp_path], ["MRR@10"])
    labels = ["A learning_rate=0.2", "B", "A learning_rate=0.1"]
    assert [each.label for each in report.configurations] == labels
    text = cells(to_markdown(report))
    assert "A learning_rate=0.2 has 0.5000 and Markov" in text
    section = text.split("## Selected in validation")[1].split("\n## ")[0]
    assert (
        "\n| A learning_rate=0.2 | 2 | 1.0000 | 0.5000 |\n| B | 1 | 0.6309 | 0.2500 |\n" in section
    )
    assert [row["validation NDCG@10"] for row in report.rows()[:3]] == pytest.approx(
        [1, 0.6309, 0.5], abs=1e-4
    )

    only = make_report([tmp_path], ["MRR@10"], selected=True)
    assert [each.label for each in only.configurations] == labels[:2]
    assert [(each.first, each.second) for each in only.comparisons] == [tuple(labels[:2])]
    assert "| A learning_rate=0.2 | 2 | 1.0000 | 0.5000 |" in cells(to_markdown(only))


def test_a_report_says_what_selected_and_what_orders(ranks, save_run, tmp_path):
    text = to_markdown(make_report([tmp_path / "sweep"]))
    assert "in the order of validation NDCG@10, seen items not filtered." in text
    assert "Checkpoints are selected by validation NDCG@10, seen items not filtered." in text
    save_run("sweep/other", changed(name="Other", evaluation={"filter_seen": ("all", "none")}))
    text = to_markdown(make_report([tmp_path / "sweep"]))
    assert "validation NDCG@10, seen items filtered (Other)" in text
    assert "validation NDCG@10, seen items not filtered (SASRec" in text
    path = tmp_path / "sweep" / "other" / "results.json"
    write_json(path, json.loads(path.read_text()) | {"selected_by": "no validation: damaged"})
    text = to_markdown(make_report([tmp_path / "sweep"]))
    assert "; no validation: damaged (Other)." in text


def test_a_figure_draws_the_best_under_the_filter_that_it_names(save_run, tmp_path, monkeypatch):
    """Runs that select under other filters are ordered by one filter, the report's."""
    monkeypatch.setattr(report_module, "_MAX_DRAWN", 1)
    good, bad = np.full(TARGETS, 2.0), np.full(TARGETS, 9.0)
    filters = {"evaluation": {"filter_seen": ("all", "none")}}
    save_run("a", changed(name="A"), {"none": good, "all": bad})
    save_run("b", changed(name="B", **filters), {"all": good - 1, "none": bad})
    report = make_report([tmp_path])
    assert report.filters[0] == "none"
    drawn = []
    monkeypatch.setattr(report_module, "run_figures", lambda *given: drawn.append(given) or {})
    write_report(report, tmp_path / "report")
    ((shown, _, _, title),) = drawn
    assert [configuration.label for configuration in shown] == ["A"]
    assert title.endswith("the 1 best of 2 by validation NDCG@10, seen items not filtered")


def test_p_values_are_those_of_resampling_users_with_holm_s_correction(ranks, tmp_path):
    comparisons = make_report([tmp_path / "sweep"]).comparisons
    assert len(comparisons) == 2 * 2 * 3
    rng = np.random.default_rng(1)
    users = rng.integers(0, TARGETS // 2, (4000, TARGETS // 2))

    def average(label, which, metric):
        rate = float(label.partition("learning_rate=")[2])
        return np.mean([gains(ranks[rate, seed][which], metric) for seed in range(3)], axis=0)

    checked = 0
    for each in comparisons:
        difference = average(each.first, each.filter_seen, each.metric) - average(
            each.second, each.filter_seen, each.metric
        )
        assert each.result.difference == pytest.approx(difference.mean())
        assert each.result.users == TARGETS // 2
        # Two targets per user, drawn together.
        means = difference.reshape(-1, 2).mean(1)[users].mean(1)
        share = min((means <= 0).mean(), (means >= 0).mean())
        spread = 2 * np.sqrt((share + 1e-3) / 4000)
        assert each.result.p_value == pytest.approx(2 * share, abs=4 * spread)
        checked += 0.01 < share < 0.4
    assert checked >= 2

    by_p = sorted(comparisons, key=lambda each: each.result.p_value)
    least = 0.0
    for rank, each in enumerate(by_p):
        least = max(least, min(1.0, (12 - rank) * each.result.p_value))
        assert each.p_holm == pytest.approx(least)


def test_what_seeds_say_of_a_difference_stands_beside_what_users_say(ranks, tmp_path):
    report = make_report([tmp_path / "sweep"])
    for each in report.comparisons:
        rates = [float(label.partition("rate=")[2]) for label in (each.first, each.second)]
        by_seed = [
            [gains(ranks[rate, seed][each.filter_seen], each.metric).mean() for seed in range(3)]
            for rate in rates
        ]
        square = sum(statistics.variance(values) / 3 for values in by_seed)
        assert each.seeds_error == pytest.approx(square**0.5)
    table = cells(to_markdown(report).split("## Differences")[1])
    first = report.comparisons[0]
    assert f"| {first.result.difference:+.4f} | {first.seeds_error:.4f} |" in table


def test_a_single_seed_says_nothing_of_training(save_run, tmp_path):
    ranks = np.random.default_rng(0).integers(1, 40, (3, TARGETS)).astype(float)
    save_run("alone", changed(optimizer={"learning_rate": 0.01}), dict(none=ranks[0], all=ranks[0]))
    for seed in (0, 1):
        drawn = dict(none=ranks[1 + seed], all=ranks[1 + seed])
        save_run(f"pair{seed}", changed(training={"seed": seed}), drawn)
    report = make_report([tmp_path])
    assert [each.seeds_error for each in report.comparisons] == [None] * 4
    assert f"| {report.comparisons[0].result.difference:+.4f} | |" in cells(to_markdown(report))


def test_of_many_configurations_each_is_compared_with_the_best(save_run, tmp_path):
    for place in range(11):
        name = f"{place:02d}"
        save_run(name, changed(name=name), {"none": np.full(TARGETS, 2.0 + place)})
    report = make_report([tmp_path], ["MRR@10"])
    assert [(each.first, each.second) for each in report.comparisons] == [
        ("00", f"{place:02d}") for place in range(1, 11)
    ]
    assert "Of so many configurations each is compared with one" in to_markdown(report)


def test_comparisons_against_one_configuration(ranks, tmp_path):
    report = make_report([tmp_path / "sweep"], ["MRR@10"])
    label = report.configurations[1].label
    against = make_report([tmp_path / "sweep"], ["MRR@10"], against=label).comparisons
    assert len(against) == 4 and all(label in (each.first, each.second) for each in against)
    with pytest.raises(RunsError, match="no configuration 'SASREC'; there are SASRec"):
        make_report([tmp_path / "sweep"], against="SASREC")
    with pytest.raises(MetricError, match="no metric 'HR@7'"):
        make_report([tmp_path / "sweep"], ["HR@7"])


def test_files_hold_the_numbers_again(ranks, tmp_path):
    report = make_report([tmp_path / "sweep"])
    paths = write_report(report, tmp_path / "out")
    assert all(path.stat().st_size > 0 for path in paths)
    assert paths[0].read_text() == to_markdown(report, ["learning_curves.png", "by_length.png"])
    with open(tmp_path / "out" / "report.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * (3 + 1)
    row = next(
        row
        for row in rows
        if "rate=0.01 " in row["configuration"] + " "
        and (row["filter_seen"], row["metric"]) == ("all", "NDCG@10")
    )
    values = [gains(ranks[0.01, seed]["all"], "NDCG@10").mean() for seed in range(3)]
    assert row["seeds"] == "3" and row["kind"] == "model"
    assert float(row["mean"]) == pytest.approx(statistics.mean(values))
    assert float(row["sd"]) == pytest.approx(statistics.stdev(values))
    by_seed = dict(part.split(":") for part in row["by_seed"].split())
    assert [float(by_seed[str(seed)]) for seed in range(3)] == pytest.approx(values)
    with open(tmp_path / "out" / "comparisons.csv") as file:
        assert [float(row["p_holm"]) for row in csv.DictReader(file)] == [
            each.p_holm for each in report.comparisons
        ]
    # The report stands below the runs by default, and is none.
    write_report(report, tmp_path / "sweep" / "report")
    assert len(make_report([tmp_path / "sweep"]).unfinished) == 1


def test_figures_draw_the_mean_over_seeds(ranks, tmp_path):
    report = make_report([tmp_path / "sweep"])
    curves = run_figures(report.configurations, report.filters, "NDCG@10", "title")
    figure = curves["learning_curves.png"]
    assert figure.get_suptitle() == "title; means over seeds"
    line = next(line for line in figure.axes[0].get_lines() if line.get_label()[0] != "_")
    # Seed s validates 3 + s times, 0.1 (i + s) in its i-th: the mean is over the first three.
    np.testing.assert_allclose(line.get_xydata(), [[1, 0.2], [2, 0.3], [3, 0.4]])
    figure = run_figures(report.configurations, report.filters, "HR@10", "title")["by_length.png"]
    assert figure.get_suptitle() == "title; means over seeds; test"
    assert [panel.get_xlabel() for panel in figure.axes] == [
        "events before the target; seen items not filtered\n(below each: targets)",
        "events before the target; seen items filtered\n(below each: targets)",
    ]
    containers = figure.axes[1].containers
    best = report.configurations[0]
    rate = best.experiment.optimizer.learning_rate
    short = best.runs[0].lengths < 50
    held = np.mean([gains(ranks[rate, seed]["all"], "HR@10") for seed in range(3)], 0)[short]
    drawn, _, (bars,) = containers[0].lines
    assert float(drawn.get_ydata()[0]) == pytest.approx(held.mean())
    # Two targets per user, of which a bucket may hold one.
    users = np.flatnonzero(short) // 2
    by_user = np.array([(held - held.mean())[users == user].sum() for user in np.unique(users)])
    count = len(by_user)
    error = np.sqrt(count / (count - 1) * np.sum(by_user**2)) / len(held)
    np.testing.assert_allclose(np.diff(bars.get_segments()[0][:, 1].astype(float)), 2 * error)
    assert [container.get_label() for container in containers] == [
        *(each.label for each in report.configurations),
        "Markov",
    ]


def test_a_single_seed_has_no_deviation_and_a_single_configuration_no_comparison(
    save_run, tmp_path
):
    save_run("a")
    report = make_report([tmp_path])
    paths = write_report(report, tmp_path / "out")
    text = paths[0].read_text()
    assert "±" not in text.split("| configuration")[1] and "## Differences" not in text
    assert (tmp_path / "out" / "comparisons.csv").read_text() == ""
    assert report.configurations[0].experiment == EXPERIMENT


def both(ranks):
    """The same ranks under both filters."""
    return {"none": np.asarray(ranks, float), "all": np.asarray(ranks, float)}


def test_the_first_line_says_whether_a_model_beats_counting(save_run, tmp_path):
    rng = np.random.default_rng(2)
    middling = rng.integers(1, 30, TARGETS)
    counting = {
        "Popularity": both(middling + 9),
        "Markov": both(middling),
        "Oracle": both(np.ones(TARGETS)),
    }
    save_run("good", changed(name="Good"), both(np.maximum(middling - 6, 1)), counting=counting)
    for seed in (0, 1):
        noted = changed(name="Bad", training={"seed": seed})
        save_run(f"bad{seed}", noted, both(middling + 6 + seed), counting=counting)
    report = make_report([tmp_path], ["NDCG@10"])
    assert [(each.first, each.second) for each in report.against_counting] == [
        ("Good", "Markov"),
        ("Bad", "Markov"),
    ] * 2
    good, bad = report.against_counting[:2]
    expected = gains(np.maximum(middling - 6, 1), "NDCG@10") - gains(middling, "NDCG@10")
    assert good.result.difference == pytest.approx(expected.mean())
    seeds = [gains(middling + 6 + seed, "NDCG@10").mean() for seed in (0, 1)]
    assert good.seeds_error is None
    assert bad.seeds_error == pytest.approx(statistics.stdev(seeds) / 2**0.5)
    text = to_markdown(report)
    first_line = text.split("\n\n")[1]
    assert first_line.startswith(
        "**Does it beat counting?** Good, the best in validation, is better than Markov, the best "
        "counting baseline by NDCG@10, in test NDCG@10, seen items not filtered: "
        f"{expected.mean():+.4f}, 95% interval "
    )
    assert first_line.endswith("Of 2 configurations: 1 better, 1 worse.")
    table = cells(text.split("## Against the best counting baseline")[1].split("##")[0])
    assert table.count("| Good | Markov |") == table.count("| Bad | Markov |") == 2
    write_report(report, tmp_path / "report")
    with open(tmp_path / "report" / "comparisons.csv") as file:
        assert [row["second"] for row in csv.DictReader(file)].count("Markov") == 4


def test_no_difference_from_counting_is_said(save_run, tmp_path):
    middling = np.random.default_rng(2).integers(1, 30, TARGETS)
    save_run("same", ranks=both(middling), counting={"Markov": both(middling[::-1])})
    assert "SASRec is neither better nor worse than Markov" in to_markdown(make_report([tmp_path]))


def test_old_runs_say_that_counting_is_not_tested(save_run, tmp_path):
    save_run("old", ranks=both(np.full(TARGETS, 9.0)))
    report = make_report([tmp_path], ["HR@10"])
    assert report.against_counting == []
    assert (
        "Not tested, because these runs do not hold the ranks of baselines. SASRec has 1.0000 "
        in (to_markdown(report))
    )


def with_unknown_compression():
    """An `.npz` file whose directory names a method of compression that Python does not know."""
    file = io.BytesIO()
    np.savez(file, name_none="Markov")
    content = bytearray(file.getvalue())
    content[content.index(b"PK\x01\x02") + 10] = 77
    return bytes(content)


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04 cut", b"text", with_unknown_compression()],
    ids=["empty", "cut", "text", "unknown compression"],
)
def test_a_damaged_file_of_baseline_ranks_is_named(save_run, tmp_path, content):
    folder = save_run("run", counting={"Markov": both(np.ones(TARGETS))})
    (folder / "ranks" / "best_baseline.npz").write_bytes(content)
    with pytest.raises(RunsError, match="best_baseline.npz is damaged .*: delete it"):
        make_report([tmp_path])
    shutil.rmtree(folder)
    save_run("run", counting={"Markov": both(np.ones(TARGETS))})
    np.savez(folder / "ranks" / "best_baseline.npz", name_none="Markov", rank_none=np.ones(3))
    with pytest.raises(RunsError, match="best_baseline.npz belongs to other targets"):
        make_report([tmp_path])


def test_baseline_ranks_that_have_changed_since_the_run_ended_are_named(save_run, tmp_path):
    folder = save_run("run", counting={"Markov": both(np.ones(TARGETS))})
    results = saved_run.read_results(folder)
    sealed = seal_results(folder, saved_run.read_experiment(folder), results)
    write_json(folder / "results.json", sealed)
    make_report([tmp_path])
    arrays = read_arrays(folder / "ranks" / "best_baseline.npz")
    arrays["rank_none"] = arrays["rank_none"] + 1
    np.savez(folder / "ranks" / "best_baseline.npz", **arrays)
    with pytest.raises(RunsError, match="best_baseline.npz has changed since the run ended"):
        make_report([tmp_path])


def test_names_are_neither_markdown_nor_html_nor_formulas(save_run, tmp_path):
    names = ["=HYPERLINK(1)", "<script>x</script>|`a`[b](c) $1 and $2", "_hidden\n# title"]
    for name in names:
        save_run(f"runs/{names.index(name)}", changed(name=name, note="[note](javascript:x)"))
    broken = save_run("runs/<b>|")
    (broken / "card.json").write_text("{")
    report = make_report([tmp_path / "runs"])
    paths = write_report(report, tmp_path / "out")
    text = paths[0].read_text()
    assert "<" not in text and "\n# title" not in text and "$1 and $2" in text
    assert r"&lt;script&gt;x&lt;/script&gt;\|\`a\`\[b\](c)" in text
    assert r"\[note\](javascript:x)" in text.splitlines()[0]
    assert (
        rf"&lt;b&gt;\|: cannot be read: {tmp_path}/runs/&lt;b&gt;\|/card.json is damaged: " in text
    )
    with open(tmp_path / "out" / "report.csv") as file:
        labels = {row["configuration"] for row in csv.DictReader(file)}
    assert labels == {"'=HYPERLINK(1)", *names[1:], "Markov"}
    with open(tmp_path / "out" / "comparisons.csv") as file:
        rows = list(csv.DictReader(file))
    assert "'=HYPERLINK(1)" in {row["first"] for row in rows} | {row["second"] for row in rows}
    assert all(float(row["difference"]) == 0 for row in rows)


@pytest.mark.parametrize("comparisons", [1, 60, 600, 5_000])
def test_each_of_many_comparisons_can_be_significant(comparisons):
    """The smallest p-value of a bootstrap, by Holm's correction."""
    assert comparisons * 2 / (num_samples(comparisons) + 1) < 0.05


def test_models_differ_in_fields_and_in_the_epochs_that_were_selected(save_run, tmp_path):
    for seed in range(2):
        save_run(f"a/{seed}", changed(training={"seed": seed}))
    other = changed(training={"num_epochs": 50.0, "seed": 4})
    save_run("b", changed(other, name="Other"))
    text = re.sub(" +", " ", to_markdown(make_report([tmp_path]), []))
    assert "| field | SASRec | Other |" in text
    assert f"| training.num_epochs | {EXPERIMENT.training.num_epochs} | 50.0 |" in text
    assert "| epoch of the checkpoint | 3.5 | 7.0 |" in text


def test_a_difference_within_the_error_over_seeds_is_none(save_run, tmp_path):
    """One seed of three is far above counting, the others are not."""
    middling = np.random.default_rng(2).integers(1, 30, TARGETS)
    for seed, gain in enumerate((29, 0, 0)):
        ranks = both(np.maximum(middling - gain, 1))
        model = changed(training={"seed": seed})
        save_run(f"seed{seed}", model, ranks, counting={"Markov": both(middling)})
    text = to_markdown(report := make_report([tmp_path], ["NDCG@10"]))
    first = report.against_counting[0]
    assert first.p_holm < 0.01 and first.result.difference > 0
    assert "SASRec is neither better nor worse than Markov" in text
    assert f"; standard error over seeds {first.seeds_error:.4f}." in text
