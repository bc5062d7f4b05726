import pytest

from linseqrec.runs.tables import results_table


def summary(**protocol):
    return {
        "protocol": {
            "split": "test",
            "filter_seen": ["none", "all"],
            "ties": "mean",
            "num_items": 300,
            "targets": 1_000,
        }
        | protocol,
        "metrics": {"none": {"HR@10": 0.25}, "all": {"HR@10": 0.5}},
    }


def headings(**protocol):
    table = results_table({"SASRec": summary(**protocol)}, ["HR@10"])
    return [line for line in table.splitlines() if line.startswith("test, ")], table


@pytest.mark.parametrize(
    ("seen", "first"),
    [(0, "filtered"), (30, "filtered (30 targets"), (31, "not filtered"), (None, "not filtered")],
)
def test_the_filter_that_fits_the_log_stands_first(seen, first):
    protocol = {} if seen is None else {"targets_among_seen": seen}
    lines, table = headings(seen_targets="missed", **protocol)
    assert len(lines) == 2 and f"seen items {first}" in lines[0]
    values = ["0.2500", "0.5000"] if first == "not filtered" else ["0.5000", "0.2500"]
    assert table.index(values[0]) < table.index(values[1])


def test_the_filtered_table_says_what_it_does_to_seen_targets():
    new, _ = headings(targets_among_seen=400, seen_targets="missed")
    assert "filtered (400 targets, 40.0%, are seen and count as misses), mean ties" in new[1]
    old, _ = headings(targets_among_seen=400)
    assert "filtered (400 targets, 40.0%, are seen and stay candidates, which tells" in old[1]
    assert "are seen" not in headings(targets_among_seen=0)[0][0]
