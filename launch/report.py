"""Reports finished runs together: over seeds, beside floors, with what their differences are worth.

    python -m launch.report --runs=runs/sweep

Every run below the folders is found. Those that differ in their seeds only are one configuration.
Writes `report.md`, `report.csv`, `comparisons.csv` and figures; refuses runs of other data or of
another protocol.
"""

from pathlib import Path

from absl import flags

from launch.flags import define_folder
from launch.program import run_program
from linseqrec.reports.markdown import markdown
from linseqrec.reports.report import METRICS, make_report
from linseqrec.reports.write import write_report

_RUNS = flags.DEFINE_multi_string("runs", None, "A run, or a folder of runs.", required=True)
_OUTPUT = define_folder("output", "Unset: `report` in the first folder.")
_METRICS = flags.DEFINE_list("metrics", list(METRICS), "HR, NDCG or MRR at a cut-off.")
_AGAINST = flags.DEFINE_string("against", "", "Compare with this configuration (a label) only.")
_DRAWN = flags.DEFINE_string("drawn", "NDCG@10", "The figures' metric.")


def main(argv: list[str]) -> None:
    del argv
    folders = [Path(folder) for folder in _RUNS.value]
    report = make_report(folders, _METRICS.value, against=_AGAINST.value)
    output = Path(_OUTPUT.value) if _OUTPUT.value else folders[0] / "report"
    paths = write_report(report, output, drawn=_DRAWN.value)
    print(markdown(report))
    print("\n".join(map(str, paths)))


if __name__ == "__main__":
    run_program(main)
