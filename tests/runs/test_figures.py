"""What the figures say: their lines, bars, labels and titles."""

import json
import sys

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from linseqrec.evaluation.metrics import bucket_metrics
from linseqrec.files import write_json
from linseqrec.runs.figures import (
    COLOURS,
    REFERENCE,
    dress,
    learning_curves,
    looks,
    metric_by_bucket,
    new_figure,
    save_figure,
)

RECORDS = [
    {"step": 10, "loss": 7.0},
    {"step": 20, "loss": 6.5},
    {"step": 20, "validation/none/NDCG@10": 0.05},
    {"step": 40, "loss": 6.0, "validation/none/NDCG@10": 0.1},
]


def lines(panel):
    return {line.get_label(): line.get_xydata().tolist() for line in panel.get_lines()}


def test_learning_curves_hold_the_records_of_each_metric():
    figure = learning_curves(
        {"RecGRELA": [RECORDS], "SASRec": [RECORDS[:3]], "published": [RECORDS[2:3]]},
        ["loss", "validation/none/NDCG@10"],
        title="a world (synthetic data)",
    )
    loss, ndcg = figure.axes
    assert lines(loss) == {
        "RecGRELA": [[10, 7.0], [20, 6.5], [40, 6.0]],
        "SASRec": [[10, 7.0], [20, 6.5]],
        "published": [],
    }
    drawn = lines(ndcg)
    assert drawn["RecGRELA"] == [[20, 0.05], [40, 0.1]]
    assert drawn["SASRec"] == [[20, 0.05]]
    assert (loss.get_xlabel(), loss.get_ylabel()) == ("step", "loss")
    assert ndcg.get_ylabel() == "validation NDCG@10\nseen items not filtered"
    assert figure.get_suptitle() == "a world (synthetic data)"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "RecGRELA",
        "SASRec",
        "published",
    ]
    colours = {line.get_color() for line in loss.get_lines()}
    dashes = {line.get_linestyle() for line in loss.get_lines()}
    assert len(colours) == len(dashes) == 3
    with pytest.raises(ValueError, match="no record holds both 'HR@10' and 'step'"):
        learning_curves({"RecGRELA": [RECORDS]}, ["HR@10"], title="")


def test_seeds_are_one_system_with_a_thin_line_each():
    longer = [{"step": step, "loss": step / 10} for step in (12, 22, 42, 60)]
    figure = learning_curves(
        {"RecGRELA": [RECORDS, longer], "SASRec": [RECORDS]}, ["loss"], title=""
    )
    (panel,) = figure.axes
    first, second, mean, other = panel.get_lines()
    # The mean ends where the shorter seed does.
    assert mean.get_xydata().tolist() == [[11, 4.1], [21, 4.35], [41, 5.1]]
    assert second.get_xydata()[-1].tolist() == [60, 6.0]
    assert {line.get_color() for line in (first, second, mean)} == {COLOURS[0]}
    assert other.get_color() == COLOURS[1]
    assert max(first.get_linewidth(), second.get_linewidth()) < mean.get_linewidth()
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["RecGRELA", "SASRec"]


def test_a_bucket_of_one_target_is_drawn_from_the_file_it_was_written_to(tmp_path):
    """One target has no standard error, which JSON writes as null."""
    records = bucket_metrics(np.array([2.0, 1, 3]), np.array([4, 60, 70]), [0, 50, 100])
    write_json(tmp_path / "records.json", records)
    read = json.loads((tmp_path / "records.json").read_text())
    assert read[0]["targets"] == 1 and read[0]["standard_errors"]["NDCG@10"] is None
    figure = metric_by_bucket({"events": {"SASRec": read}}, title="")
    (line,) = figure.axes[0].containers
    values = [record["metrics"].get("NDCG@10", np.nan) for record in records]
    np.testing.assert_array_equal(line.lines[0].get_ydata(orig=False), values)


def test_a_metric_by_bucket_holds_values_errors_and_counts():
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 150, 400)
    systems = {
        name: bucket_metrics(rng.integers(1, 20, 400).astype(float), lengths)
        for name in ("RecGRELA", "SASRec", "Markov")
    }
    figure = metric_by_bucket(
        {"events before the target": systems},
        "HR@10",
        title="ML-1M; test",
        references=["Markov"],
    )
    (panel,) = figure.axes
    assert panel.get_ylabel().startswith("HR@10") and "standard error" in panel.get_ylabel()
    ticks = [label.get_text() for label in panel.get_xticklabels()]
    assert ticks[0] == f"0-49\n{(lengths < 50).sum()}" and ticks[4] == "500+\n0"
    # Wide enough for the points of each bucket that has some.
    assert panel.get_xlim() == (-0.6, 2.6)
    assert figure.get_suptitle() == "ML-1M; test"
    for container, (name, records) in zip(panel.containers, systems.items(), strict=True):
        assert container.get_label() == name
        line, _, (bars,) = container.lines
        np.testing.assert_allclose(
            line.get_ydata().astype(float), [r["metrics"].get("HR@10", np.nan) for r in records]
        )
        first = bars.get_segments()[0][:, 1].astype(float)
        error = records[0]["standard_errors"]["HR@10"]
        np.testing.assert_allclose(np.diff(first), 2 * error)
        assert np.isnan(float(line.get_ydata()[-1]))  # no targets, no point
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(systems)
    greys = [to_rgb(container.lines[0].get_color()) for container in panel.containers]
    assert [len(set(grey)) == 1 for grey in greys] == [False, False, True]
    with pytest.raises(ValueError, match="must share their buckets"):
        metric_by_bucket({"events": systems | {"other": systems["Markov"][:2]}}, title="")
    with pytest.raises(ValueError, match="must share their buckets"):
        metric_by_bucket({"events": {}}, title="")
    with pytest.raises(ValueError, match="no bucket holds 'HR@7'"):
        metric_by_bucket({"events": systems}, "HR@7", title="")


def test_a_system_looks_the_same_in_every_figure():
    records = bucket_metrics(np.arange(1.0, 21), np.full(20, 30))
    baselines = ["Markov", "Personal Markov", "Personal Markov, last 50 events"]
    curves = learning_curves(
        dict.fromkeys(["HyTRec", "mine", "SASRec"], [RECORDS]), ["loss"], title=""
    )
    names = ["SASRec", "mine", *baselines]
    buckets = metric_by_bucket(
        {"events": dict.fromkeys(names, records)}, title="", references=baselines
    )
    drawn = {line.get_label(): line for line in curves.axes[0].get_lines()}
    for container in buckets.axes[0].containers[:2]:
        line, other = container.lines[0], drawn[container.get_label()]
        assert (line.get_color(), line.get_marker()) == (other.get_color(), other.get_marker())
    greys = [container.lines[0] for container in buckets.axes[0].containers[2:]]
    assert {line.get_color() for line in greys} == {REFERENCE}
    assert len({line.get_marker() for line in greys}) == 3
    alone = looks(["Personal Markov"], ["Personal Markov"])["Personal Markov"]
    assert alone["marker"] == greys[1].get_marker()


def test_twelve_systems_have_twelve_looks():
    names = [f"learning_rate={rate}" for rate in range(11)] + ["SinkRec"]
    found = {(look["color"], look["marker"]) for look in looks(names).values()}
    assert len(found) == 12
    assert looks(names)["SinkRec"] == looks(["SinkRec"])["SinkRec"]


@pytest.mark.parametrize(
    ("scale", "values", "expected"),
    [
        ("log", (3, 40_000), ["10", "100", "1,000", "10,000"]),
        ("log", (0.0003, 0.4), ["0.001", "0.01", "0.1"]),
        ("log", (20, 90), ["20", "30", "40", "60"]),
        ("linear", (0, 2e-5), ["0.000000", "0.000005", "0.000010", "0.000015", "0.000020"]),
        ("linear", (1e7, 1e7 + 4), ["10000000", "10000001", "10000002", "10000003", "10000004"]),
    ],
)
def test_ticks_are_plain_numbers(scale, values, expected):
    figure, (panel,) = new_figure(1, "title")
    panel.plot(values, values)
    panel.set_yscale(scale)
    if scale == "linear":
        panel.set_yticks(np.linspace(*values, 5))
    dress(panel)
    figure.canvas.draw()
    low, high = panel.get_ylim()
    ticks = [*panel.yaxis.get_major_ticks(), *panel.yaxis.get_minor_ticks()]
    labels = {
        tick.get_loc(): tick.label1.get_text() for tick in ticks if low <= tick.get_loc() <= high
    }
    assert [labels[place] for place in sorted(labels) if labels[place]] == expected


def test_a_legend_of_long_names_takes_nothing_from_the_panel():
    records = bucket_metrics(np.arange(1.0, 21), np.full(20, 30))

    def panel_size(names):
        figure = metric_by_bucket({"events": dict.fromkeys(names, records)}, title="title")
        figure.canvas.draw()
        return figure.axes[0].get_window_extent().size

    short = panel_size([f"model {index}" for index in range(12)])
    long = panel_size([f"model {index} {'learning_rate=0.001 ' * 3}" for index in range(12)])
    np.testing.assert_allclose(long, short, rtol=0.1)


def test_a_saved_figure_is_an_image_with_something_on_it(tmp_path):
    figure = learning_curves({"RecGRELA": [RECORDS]}, ["loss"], title="curves")
    path = save_figure(figure, tmp_path / "figures" / "curves.png")
    pixels = imread(path)
    blue = (np.abs(pixels[..., :3] - np.array([0x00, 0x72, 0xB2]) / 255) < 0.02).all(-1)
    assert blue.sum() > 500
    assert (
        "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
    )
