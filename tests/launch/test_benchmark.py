import json
import sys
import types

import pytest
from absl import app
from absl.testing import flagsaver

from launch import benchmark
from linseqrec.benchmarks.measuring import Row


@pytest.fixture
def suite(monkeypatch):
    """A suite called `small`, of one row; remembers how often it is asked to repeat."""
    asked = []

    def rows(repeats):
        asked.append(repeats)
        yield Row("case", "slow", seconds=0.25, quartiles=(0.2, 0.3), ratio=1.0)
        yield Row("case", "memory", extra={"temporary_bytes": 1_234_567, "share": 0.125})

    module = types.SimpleNamespace(rows=rows)
    monkeypatch.setitem(sys.modules, "linseqrec.benchmarks.small", module)
    monkeypatch.setattr(benchmark, "suite_names", lambda: ["other", "small"])
    return asked


def test_rows_are_printed_and_kept_with_machine_and_versions(suite, tmp_path, capsys):
    output = tmp_path / "new" / "small.json"
    with flagsaver.flagsaver(suite=["small"], repeats=3, output=str(output)):
        benchmark.main(["benchmark"])
    assert suite == [3]
    printed = capsys.readouterr().out
    assert "250.00 ms" in printed and "temporary_bytes=1,234,567" in printed
    kept = json.loads(output.read_text())
    assert kept["versions"]["jax"] and kept["cores"]
    assert kept["suites"]["small"][0]["seconds"] == 0.25
    assert kept["suites"]["small"][1]["extra"] == {"temporary_bytes": 1_234_567, "share": 0.125}
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


def test_an_unknown_suite_is_answered_with_those_there_are(suite):
    with flagsaver.flagsaver(suite=["smal"]), pytest.raises(app.UsageError, match="other, small"):
        benchmark.main(["benchmark"])


def test_every_suite_file_is_a_suite():
    names = benchmark.suite_names()
    assert "cross_entropy" in names and "measuring" not in names
    assert benchmark.select(["all"]) == names
