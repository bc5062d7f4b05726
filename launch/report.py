"""Reports finished runs together: means over seeds, baselines, and tests of the differences.

    python -m launch.report --runs=runs/sweep

The program finds every run below the folders. Runs that differ in their seeds only are one
configuration. Validation selects: the test split orders nothing. The program writes `report.md`,
`report.csv`, `comparisons.csv` and figures, and refuses runs that cannot be compared, such as runs
on other data.
"""

from pathlib import Path

from absl import flags

from launch.flags import define_folder
from launch.program import run_program
from linseqrec.runs.report import METRICS, make_report, to_markdown, write_report

_RUNS = flags.DEFINE_multi_string("runs", None, "A run, or a folder of runs.", required=True)
_OUTPUT = define_folder(
    "output", "Unset: in the first folder, `report`; with --selected, `report_selected`."
)
_METRICS = flags.DEFINE_list("metrics", list(METRICS), "HR, NDCG or MRR at a cut-off.")
flags.register_validator("metrics", bool, message="name at least one metric")
_AGAINST = flags.DEFINE_string("against", "", "Compare with this configuration (a label) only.")
_SELECTED = flags.DEFINE_bool(
    "selected", False, "Report each model's best configuration by validation only."
)
_DRAWN = flags.DEFINE_string("drawn", "NDCG@10", "The figures' metric.")


def main(argv: list[str]) -> None:
    del argv
    folders = [Path(folder) for folder in _RUNS.value]
    report = make_report(folders, _METRICS.value, against=_AGAINST.value, selected=_SELECTED.value)
    # The full report also has the configurations that validation does not select: it stays.
    name = "report_selected" if _SELECTED.value else "report"
    output = Path(_OUTPUT.value) if _OUTPUT.value else folders[0] / name
    paths = write_report(report, output, metric=_DRAWN.value)
    print(to_markdown(report))
    print("\n".join(map(str, paths)))


if __name__ == "__main__":
    run_program(main)
