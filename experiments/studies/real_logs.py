"""How well every model predicts on real logs, with the request time hidden and known.

    python -m launch.study --study=experiments/studies/real_logs.py --workdir=runs/studies

Results: results/real_logs.md.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from linseqrec.studies.study import COUNTING, Arm, Claim, Study, Table

MODELS = {
    "RecGRELA": "recgrela",
    "HyTRec": "hytrec",
    "SinkRec": "sinkrec",
    "Gated DeltaNet": "gated_deltanet",
    "SASRec": "sasrec",
    "HSTU": "hstu",
    "FuXi-Linear": "fuxi_linear",
    "Mamba-2": "mamba2",
    "LRURec": "lrurec",
    "GRU4Rec": "gru4rec",
    "LinRec": "linrec",
}
OURS = ("RecGRELA", "HyTRec", "SinkRec")
_WITH_TIME = ("Gated DeltaNet", "HSTU", "FuXi-Linear", *OURS)
_KNOWN = {"data.request_time": "known"}


def models(
    log: str, labels: Iterable[str] = MODELS, overrides: Mapping[str, Any] | None = None
) -> tuple[Arm, ...]:
    """Models on a log, by its recipe but for the overrides."""
    return tuple(
        Arm(label, f"experiments/{log}.py:{MODELS[label]}", overrides or {}) for label in labels
    )


STUDY = Study(
    name="real_logs",
    title="Real logs",
    about=(
        "All models have width 64. Each log has one recipe for rows, optimizer and epochs "
        "(`experiments/LOG.py`). Dropout is .3 on the three small logs. On MovieLens-1M it is .1, "
        "but .2 for Gated DeltaNet. On completejourney each model keeps its default, .1 or .2. The "
        "split is leave-one-out. Validation NDCG@10 selects the checkpoint. The test split is read "
        "once. [Where the logs come from](../docs/data.md)."
    ),
    tables=(
        Table(
            "foursquare",
            "Check-ins in New York. 76 % are revisits, so seen items are not filtered. Gated "
            "DeltaNet has two blocks and keys of 128, which were chosen on this log. The others "
            "have their default sizes.",
            models("foursquare"),
            analyses=("attention_rank", "state_sink", "insertion_probe", "buckets"),
        ),
        Table(
            "ml1m",
            "Film ratings. Nobody rates a film twice. RecGRELA, Gated DeltaNet, SASRec, Mamba-2, "
            "LRURec, GRU4Rec and LinRec read the order of events alone; the others also read the "
            "timestamps.",
            (
                *models("ml1m"),
                Arm(
                    "RecGRELA, 32 epochs",
                    "experiments/ml1m.py:recgrela",
                    {"data.phase": "random", "training.num_epochs": 32.0},
                ),
                Arm(
                    "FuXi-Linear, no times",
                    "experiments/ml1m.py:fuxi_linear",
                    {"model.temporal": False},
                ),
            ),
            seeds=(0,),
        ),
        Table(
            "ml1m_known",
            "The same log. The models know the time at which each prediction is asked for.",
            models("ml1m", _WITH_TIME, _KNOWN),
            seeds=(0,),
        ),
        Table(
            "foursquare_known",
            "The same check-ins. The models know the time at which each prediction is asked for.",
            models("foursquare", _WITH_TIME, _KNOWN),
            seeds=(0,),
        ),
        Table("ml100k", "Film ratings, a tenth as many.", models("ml100k")),
        Table("mllatest", "Film ratings of 610 users.", models("mllatest")),
        Table(
            "completejourney",
            "Purchases of 2,449 households among 28,164 products, the longest histories here. The "
            "products of a basket stand in a random order. The loss samples 2,048 products a step. "
            "Scores start in favour of the household's own products (`own_items`).",
            models("completejourney"),
            seeds=(0,),
        ),
        Table(
            "completejourney_known",
            "The same purchases. The models know the time at which each prediction is asked for, "
            "and so whether the basket goes on.",
            models("completejourney", _WITH_TIME, _KNOWN),
            seeds=(0,),
        ),
    ),
    claims=(
        Claim(
            "Gated DeltaNet is better than counting on check-ins",
            "foursquare",
            "Gated DeltaNet",
            COUNTING,
        ),
        Claim(
            "Gated DeltaNet is better than counting on purchases",
            "completejourney",
            "Gated DeltaNet",
            COUNTING,
        ),
        Claim(
            "Gated DeltaNet, told the request time, is better than counting on purchases",
            "completejourney_known",
            "Gated DeltaNet",
            COUNTING,
        ),
        *(
            Claim(
                f"{label} is better than SASRec on ML-1M",
                "ml1m",
                label,
                ("SASRec",),
                filter_seen="all",
            )
            for label in OURS
        ),
        *(
            Claim(
                f"{label} is better than HSTU and FuXi-Linear on ML-1M",
                "ml1m",
                label,
                ("HSTU", "FuXi-Linear"),
                filter_seen="all",
            )
            for label in OURS
        ),
        Claim(
            "With known request times, RecGRELA is better on ML-1M than RecTools' HSTU of 8 blocks "
            "(published NDCG@10 .2164)",
            "ml1m_known",
            "RecGRELA",
            0.2164,
            filter_seen="all",
            source="https://github.com/MobileTeleSystems/RecTools/blob/main/examples/tutorials/"
            "transformers_HSTU_tutorial.ipynb",
        ),
        Claim(
            "RecGRELA reaches its published NDCG@10, .1959 not filtered, in the causal form",
            "ml1m",
            "RecGRELA, 32 epochs",
            0.1959,
            source="https://arxiv.org/abs/2506.13315",
        ),
    ),
)
