r"""Draws runs of one data set together: learning curves, and the metric by history length.

For instance:

    python -m launch.figures --workdir=runs/recgrela_ml1m --workdir=runs/sasrec_ml1m \
        --output=runs/figures
"""

from pathlib import Path

from absl import flags

from launch.program import run_program
from linseqrec.evaluation.published import RECGRELA_ML1M_CURVE
from linseqrec.training.results import write_figures

_WORKDIRS = flags.DEFINE_multi_string("workdir", None, "A run that has ended.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the figures.", required=True)
_METRIC = flags.DEFINE_string("metric", "NDCG@10", "What is drawn.")
_PUBLISHED = flags.DEFINE_bool("published", False, "Add RecGRELA's published ML-1M curve.")


def main(argv: list[str]) -> None:
    del argv
    paths = write_figures(
        [Path(folder) for folder in _WORKDIRS.value],
        Path(_OUTPUT.value),
        metric=_METRIC.value,
        published={"RecGRELA (published)": RECGRELA_ML1M_CURVE} if _PUBLISHED.value else None,
    )
    print("\n".join(map(str, paths)))


if __name__ == "__main__":
    run_program(main)
