r"""Draws runs of one data set together: learning curves, and the metric by history length.

Runs of one name are told apart by their folders; runs that were not tested alike are refused.

For instance:

    python -m launch.figures --workdir=runs/recgrela_ml1m --workdir=runs/sasrec_ml1m \
        --output=runs/figures
"""

from pathlib import Path

from absl import flags

from launch.flags import define_folder
from launch.program import run_program
from linseqrec.evaluation.published import RECGRELA_ML1M_CURVE
from linseqrec.reports.comparability import check_comparable
from linseqrec.reports.runs import FinishedRun
from linseqrec.training.results import write_figures

_WORKDIRS = flags.DEFINE_multi_string("workdir", None, "A run that has ended.", required=True)
_OUTPUT = define_folder("output", "Folder of the figures.", required=True)
_METRIC = flags.DEFINE_string("metric", "NDCG@10", "What is drawn.")
_PUBLISHED = flags.DEFINE_bool("published", False, "Add RecGRELA's published ML-1M curve.")


def main(argv: list[str]) -> None:
    del argv
    folders = list(dict.fromkeys(Path(folder) for folder in _WORKDIRS.value))
    check_comparable([FinishedRun.open(folder) for folder in folders])
    paths = write_figures(
        folders,
        Path(_OUTPUT.value),
        metric=_METRIC.value,
        published={"RecGRELA (published)": RECGRELA_ML1M_CURVE} if _PUBLISHED.value else None,
    )
    print("\n".join(map(str, paths)))


if __name__ == "__main__":
    run_program(main)
