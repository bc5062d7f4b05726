"""What the training recipe, the rows, the size and the precision are worth.

    python -m launch.study --study=experiments/studies/recipe.py --workdir=runs/studies

Results: results/recipe.md.
"""

from typing import Any

from experiments.studies.real_logs import MODELS
from linseqrec.studies.study import COUNTING, Arm, Claim, Study, Table, arms

_SMALL: dict[str, Any] = {
    "model.width": 64,
    "model.key_width": 32,
    "model.value_width": 32,
    "model.feed_forward": 4,
    "training.num_epochs": 6.0,
    "training.evaluate_every": 2.0,
}
_REPETITION: dict[str, dict[str, Any]] = {
    "width 80, keys of 128: the experiment": {},
    "width 128, keys of 128, dropout .2, 14 epochs": {
        "model.width": 128,
        "model.value_width": 128,
        "model.dropout": 0.2,
        "training.num_epochs": 14.0,
    },
    "small: width 64, keys of 32, 6 epochs": _SMALL,
    "small, users cut at a random phase": _SMALL | {"data.phase": "random"},
    "small, whole histories, one a batch": _SMALL | {"data.length": 0, "data.batch_size": 1},
    "small, in bfloat16": _SMALL | {"model.dtype": "bfloat16"},
}
_EXPERIMENT = "experiments/repetition.py:gated_deltanet"
_WIDE = {"model.width": 128, "model.value_width": 128, "training.num_epochs": 20.0}
_SHARE = {"data.renamed": 0.7}
_RENAMED: dict[str, dict[str, Any]] = {
    "width 128, 20 epochs, 7 of 10 rows renamed": _WIDE | _SHARE,
    "width 128, 32 epochs, 7 of 10 rows renamed": _WIDE | _SHARE | {"training.num_epochs": 32.0},
    "width 128, keys of 256, 20 epochs, 7 of 10 rows renamed": (
        _WIDE | _SHARE | {"model.key_width": 256}
    ),
    "width 128, 20 epochs": _WIDE,
}
_OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "RecGRELA": ("recgrela", {}),
    "HyTRec of one head": (
        "hytrec",
        {
            "model.heads": 1,
            "model.key_width": 0,
            "model.value_width": 0,
            "model.attention_convolution": False,
        },
    ),
    "SinkRec": ("sinkrec", {"model.loops": 1, "model.dropout": 0.1}),
}

STUDY = Study(
    name="recipe",
    title="What the recipe, the rows, the size and the precision are worth",
    about="Most arms train Gated DeltaNet, the plainest delta memory, in different ways.",
    tables=(
        Table(
            "repetition",
            "Habits (synthetic data).",
            arms(_EXPERIMENT, _REPETITION),
        ),
        Table(
            "renamed",
            "The same world, trained for longer. In a renamed row, random items replace the "
            "row's own, anew each time (`data.renamed`, ours). From such a row a model learns only "
            "to look up what followed an item in it. RecGRELA and SinkRec (one pass, "
            "dropout .1) have the size of their experiments; HyTRec has one head, keys of 80, "
            "and no lookups in its softmax blocks. Of the arms with renamed rows, the claim "
            "against counting takes the one whose seed 0 has the best NDCG@10 in validation.",
            (
                *arms(_EXPERIMENT, _RENAMED),
                *(
                    Arm(
                        f"{label}, 20 epochs, 7 of 10 rows renamed",
                        f"experiments/repetition.py:{model}",
                        {"training.num_epochs": 20.0, **_SHARE, **own},
                    )
                    for label, (model, own) in _OTHERS.items()
                ),
            ),
        ),
        Table(
            "renamed_foursquare",
            "Check-ins in New York, 76 % of them revisits, with renamed rows and without.",
            arms(
                "experiments/foursquare.py:gated_deltanet",
                {"the experiment": {}, "half of the rows renamed": {"data.renamed": 0.5}},
            ),
            seeds=(0,),
        ),
        Table(
            "own_items",
            "Purchases of 2,449 households among 28,164 products, those of a basket in a random "
            "order. With `own_items` (ours) scores start in favour of what the household bought "
            "before, by how often and how lately.",
            arms(
                "experiments/completejourney.py:gated_deltanet",
                {
                    "width 64, own items: the experiment": {},
                    "width 64": {"own_items": False},
                },
            ),
            seeds=(0,),
        ),
        Table(
            "own_items_foursquare",
            "Check-ins in New York, 76 % of them revisits, with `own_items` and without.",
            arms(
                "experiments/foursquare.py:gated_deltanet",
                {"the experiment": {}, "own items": {"own_items": True}},
            ),
            seeds=(0,),
        ),
        Table(
            "schedule",
            "Check-ins in New York. The experiment's rate falls in the last fifth of the run; a "
            "constant one does not.",
            tuple(
                Arm(f"{label}{words}", f"experiments/foursquare.py:{MODELS[label]}", changes)
                for label in ("Gated DeltaNet", "Mamba-2", "LRURec", "LinRec", "GRU4Rec")
                for words, changes in (
                    ("", {}),
                    (", constant rate", {"optimizer.schedule": "constant"}),
                )
            ),
            seeds=(0,),
        ),
        Table(
            "schedule_ml1m",
            "Film ratings. The experiment's rate falls from its peak to the end, as a cosine.",
            arms(
                "experiments/ml1m.py:recgrela",
                {"RecGRELA": {}, "RecGRELA, late decay": {"optimizer.schedule": "late_decay"}},
            ),
            seeds=(0,),
        ),
        Table(
            "ml1m",
            "Film ratings. Gated DeltaNet reads no timestamps.",
            arms(
                "experiments/ml1m.py:gated_deltanet",
                {
                    "4 rows a batch: the experiment": {},
                    "16 rows a batch": {"data.batch_size": 16},
                },
            ),
            seeds=(0,),
        ),
    ),
    claims=(
        Claim(
            "A linear memory that trained on renamed rows recalls habits better than counting",
            "renamed",
            "width 128, 32 epochs, 7 of 10 rows renamed",
            COUNTING,
        ),
        Claim(
            "Renaming 7 of 10 rows is better than renaming none, in `repetition`",
            "renamed",
            "width 128, 20 epochs, 7 of 10 rows renamed",
            ("width 128, 20 epochs",),
        ),
        Claim(
            "Renaming half of the rows is better than renaming none, on check-ins",
            "renamed_foursquare",
            "half of the rows renamed",
            ("the experiment",),
        ),
        Claim(
            "Scores that start in favour of the user's own items are better, on purchases",
            "own_items",
            "width 64, own items: the experiment",
            ("width 64",),
        ),
        Claim(
            "Scores that start in favour of the user's own items are better, on check-ins",
            "own_items_foursquare",
            "own items",
            ("the experiment",),
        ),
        Claim(
            "More and smaller batches in the same epochs are better, on ML-1M",
            "ml1m",
            "4 rows a batch: the experiment",
            ("16 rows a batch",),
            filter_seen="all",
        ),
        Claim(
            "A random phase is better than fixed windows, in `repetition`",
            "repetition",
            "small, users cut at a random phase",
            ("small: width 64, keys of 32, 6 epochs",),
        ),
    ),
)
