"""The same search for every model: one log, one budget, selected by validation.

    python -m launch.study --study=experiments/studies/search.py --workdir=runs/studies

Results: results/search.md.
"""

from typing import Any

from experiments.studies.real_logs import MODELS
from linseqrec.studies.study import Arm, Study, Table

_TRIED: dict[str, dict[str, Any]] = {
    "the recipe": {},
    "rate .001": {"optimizer.learning_rate": 1e-3},
    "dropout .5": {"model.dropout": 0.5},
}

STUDY = Study(
    name="search",
    title="One search for every model",
    about=(
        "In the other studies all models train by one recipe per log. It may suit one model "
        "better than another. Here each model has the same three tries: the log's recipe (rate "
        ".002, dropout .3), half of its rate, and dropout .5. Validation NDCG@10 selects one of "
        "them for each model."
    ),
    tables=(
        Table(
            "ml100k",
            "Film ratings. All models have width 64. The dropout around SinkRec's memory (.3) was "
            "found on this log's validation too, in tries of its own: results/sinkrec.md.",
            tuple(
                Arm(f"{label}, {change}", f"experiments/ml100k.py:{name}", overrides)
                for label, name in MODELS.items()
                for change, overrides in _TRIED.items()
            ),
            seeds=(0,),
            search=True,
        ),
    ),
)
