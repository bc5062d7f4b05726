"""launch.benchmark: its output and its choice of suites."""

import json
import sys
import types

import pytest
from absl import app, flags
from absl.testing import flagsaver

from launch import benchmark
from linseqrec.benchmarks.measuring import Row


@pytest.fixture
def suite(monkeypatch):
    """Adds a suite `small` with two rows; returns the list of its `repeats` arguments."""
    calls = []

    def rows(repeats):
        calls.append(repeats)
        yield Row("case", "slow", seconds=0.25, quartiles=(0.2, 0.3), ratio=1.0)
        yield Row("case", "memory", extra={"temporary_bytes": 1_234_567, "share": 0.125})

    module = types.SimpleNamespace(rows=rows)
    monkeypatch.setitem(sys.modules, "linseqrec.benchmarks.small", module)
    monkeypatch.setattr(benchmark, "suite_names", lambda: ["other", "small"])
    return calls


def test_rows_are_printed_and_written_with_machine_and_versions(suite, tmp_path, capsys):
    output = tmp_path / "new" / "small.json"
    with flagsaver.flagsaver(suite=["small"], repeats=3, output=str(output)):
        benchmark.main(["benchmark"])
    assert suite == [3]
    printed = capsys.readouterr().out
    assert "250.00 ms" in printed and "temporary_bytes=1,234,567" in printed
    report = json.loads(output.read_text())
    assert report["versions"]["jax"] and report["cores"]
    assert report["suites"]["small"][0]["seconds"] == 0.25
    assert report["suites"]["small"][1]["extra"] == {"temporary_bytes": 1_234_567, "share": 0.125}
    assert (
        output.with_suffix(".md")
        .read_text()
        .endswith(
            "**case**\n\n"
            "|  | ms | ratio | temporary_bytes | share |\n"
            "|---|---:|---:|---:|---:|\n"
            "| slow | 250 | 1 |  |  |\n"
            "| memory |  |  | 1,234,567 | 0.125 |\n"
        )
    )


def test_an_unknown_suite_is_an_error_that_lists_the_suites(suite):
    with flagsaver.flagsaver(suite=["smal"]), pytest.raises(app.UsageError, match="other, small"):
        benchmark.main(["benchmark"])


def test_the_page_does_not_replace_the_rows():
    with pytest.raises(flags.IllegalFlagValueError, match="name a .json file"):
        flags.FLAGS.output = "cost.md"


def test_all_selects_every_suite():
    names = benchmark.suite_names()
    assert "cross_entropy" in names and "measuring" not in names
    assert benchmark.select(["all"]) == names
