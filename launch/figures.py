r"""Draws runs of one data set together: learning curves, and the metric by history length.

    python -m launch.figures --workdir=runs/recgrela_ml1m --workdir=runs/sasrec_ml1m \
        --output=runs/figures

The seeds of one configuration are one line. The program refuses runs that cannot be compared, such
as runs on other data.
"""

import json
from pathlib import Path

from absl import flags

from launch.flags import define_folder
from launch.program import run_program
from linseqrec.runs.figures import write_figures

_WORKDIRS = flags.DEFINE_multi_string("workdir", None, "A run that has ended.", required=True)
_OUTPUT = define_folder("output", "Folder of the figures.", required=True)
_METRIC = flags.DEFINE_string("metric", "NDCG@10", "The metric to draw.")
_PUBLISHED = flags.DEFINE_bool("published", False, "Add RecGRELA's published ML-1M curve.")
_PUBLISHED_CURVE = Path(__file__).parents[1] / "results" / "published" / "recgrela_ml1m.json"


def main(argv: list[str]) -> None:
    del argv
    published = {}
    if _PUBLISHED.value:
        curve = json.loads(_PUBLISHED_CURVE.read_text())
        published[curve["name"]] = curve["records"]
    paths = write_figures(
        list(dict.fromkeys(Path(folder) for folder in _WORKDIRS.value)),
        Path(_OUTPUT.value),
        metric=_METRIC.value,
        published=published,
    )
    print("\n".join(map(str, paths)))


if __name__ == "__main__":
    run_program(main)
