"""How well every model predicts in generated worlds, beside counting and the best possible score.

    python -m launch.study --study=experiments/studies/worlds.py --workdir=runs/studies

Results: results/worlds.md.
"""

from typing import Any

from experiments.studies.real_logs import MODELS, OURS, models
from linseqrec.studies.study import COUNTING, Arm, Claim, Study, Table

_GATED_DELTANET = "experiments/repetition.py:gated_deltanet"
_LONGER: dict[str, Any] = {"training.num_epochs": 6.0}
# The heads start as lookups, as in `experiments/repetition.py`.
_LOOKUP: dict[str, Any] = {"model.heads": 1, "model.lookup": True, "model.positions": "none"}
_WIDE_KEYS: dict[str, Any] = {
    "model.width": 80,
    "model.num_layers": 2,
    "model.key_width": 128,
    "model.value_width": 80,
    "model.feed_forward": 2,
}
_ONE_HEAD: dict[str, Any] = {
    "model.width": 80,
    "model.heads": 1,
    "model.short_layers": 1,
    "model.num_layers": 2,
    "model.ratio": "1:0",
    "model.feed_forward": 2,
}
# One pass, whose recurrence has the keys of `_WIDE_KEYS`.
_ONE_PASS: dict[str, Any] = {"model.loops": 1, "model.key_width": 128, "model.value_width": 64}
_RENAMED: dict[str, Any] = {"data.renamed": 0.7} | _LONGER
_ON_RENAMED_ROWS: dict[str, dict[str, Any]] = {
    "RecGRELA": _LOOKUP,
    "HyTRec": _WIDE_KEYS | {"model.short_layers": 1, "model.ratio": "1:0"},
    "SinkRec": _ONE_PASS,
    "Gated DeltaNet": _WIDE_KEYS,
    "HSTU": {},
    "FuXi-Linear": {},
}

STUDY = Study(
    name="worlds",
    title="Generated worlds (synthetic data)",
    about=(
        "Each world is generated, so that the best possible score is known: the oracle ranks by "
        "the distribution that the next event is drawn from. Seen items are not filtered, because "
        "users repeat items."
    ),
    tables=(
        Table(
            "repetition",
            "Habits: over half of the events repeat earlier ones. To recall them is to look up "
            "what followed the present item before.",
            (
                *models("repetition"),
                Arm(
                    "SinkRec, one pass, dropout .1",
                    "experiments/repetition.py:sinkrec",
                    {"model.loops": 1, "model.dropout": 0.1},
                ),
                Arm(
                    "HyTRec, the long branch alone",
                    "experiments/repetition.py:hytrec",
                    {"model.branches": "long", "model.short_events": 0, "model.short_layers": 2},
                ),
                Arm(
                    "Gated DeltaNet, width 128, dropout .2, 14 epochs",
                    _GATED_DELTANET,
                    {
                        "model.width": 128,
                        "model.value_width": 128,
                        "model.dropout": 0.2,
                        "training.num_epochs": 14.0,
                    },
                ),
            ),
            analyses=("buckets",),
        ),
        Table(
            "drift",
            "Tastes drift while a user is away. HyTRec's memory fades with the time between "
            "events; Gated DeltaNet reads no times.",
            (
                *models("drift"),
                Arm(
                    "HyTRec, the long branch alone, 5 epochs",
                    "experiments/drift.py:hytrec",
                    {
                        "model.branches": "long",
                        "model.short_events": 0,
                        "model.timed_attention": True,
                        "training.num_epochs": 5.0,
                    },
                ),
            ),
        ),
        Table(
            "ultra_long",
            "Habits in histories of some 1,500 events: 1,500 users and 1,000 items, fewer than "
            "in the preset of that name. Models train for 2 epochs, some also for 6.",
            (
                *models("ultra_long"),
                Arm("HSTU, 6 epochs", "experiments/ultra_long.py:hstu", _LONGER),
                Arm("FuXi-Linear, 6 epochs", "experiments/ultra_long.py:fuxi_linear", _LONGER),
                Arm("RecGRELA, lookup", "experiments/ultra_long.py:recgrela", _LOOKUP),
                Arm(
                    "RecGRELA, lookup, 6 epochs",
                    "experiments/ultra_long.py:recgrela",
                    _LOOKUP | _LONGER,
                ),
                Arm("HyTRec, one head", "experiments/ultra_long.py:hytrec", _ONE_HEAD),
                Arm(
                    "Gated DeltaNet, keys of 128",
                    "experiments/ultra_long.py:gated_deltanet",
                    _WIDE_KEYS,
                ),
            ),
        ),
        Table(
            "ultra_long_renamed",
            "The same world. Each model trains for 6 epochs. In 7 of 10 rows, random items "
            "replace the row's own, anew each time (`data.renamed`, ours). From such a row a model "
            "learns only to look up what followed an item in it. RecGRELA starts with "
            "lookups; HyTRec, SinkRec and Gated DeltaNet have keys of 128, SinkRec one pass.",
            (
                *(
                    Arm(label, f"experiments/ultra_long.py:{MODELS[label]}", own | _RENAMED)
                    for label, own in _ON_RENAMED_ROWS.items()
                ),
                *(
                    Arm(f"{label}, no row renamed", f"experiments/ultra_long.py:{model}", _LONGER)
                    for label, model in (("HSTU", "hstu"), ("FuXi-Linear", "fuxi_linear"))
                ),
            ),
            analyses=("buckets",),
        ),
        Table("quick", "The small world of the quick start.", models("quick")),
    ),
    claims=(
        Claim(
            "A linear memory recalls habits better than counting",
            "repetition",
            "Gated DeltaNet",
            COUNTING,
        ),
        Claim(
            "SinkRec of one pass is better than Gated DeltaNet of equal size",
            "repetition",
            "SinkRec, one pass, dropout .1",
            ("Gated DeltaNet",),
        ),
        Claim(
            "A memory that decays with elapsed time is better than one that reads no times, in "
            "`drift`",
            "drift",
            "HyTRec, the long branch alone, 5 epochs",
            ("Gated DeltaNet",),
        ),
        *(
            Claim(
                f"{label} is better than HSTU and FuXi-Linear in `ultra_long`",
                "ultra_long",
                label,
                ("HSTU", "FuXi-Linear"),
            )
            for label in OURS
        ),
        Claim(
            "RecGRELA with lookup is better than HSTU and FuXi-Linear in `ultra_long`, after 6 "
            "epochs each",
            "ultra_long",
            "RecGRELA, lookup, 6 epochs",
            ("HSTU, 6 epochs", "FuXi-Linear, 6 epochs"),
        ),
        Claim(
            "SinkRec that trained on renamed rows recalls habits better than counting, in "
            "`ultra_long`",
            "ultra_long_renamed",
            "SinkRec",
            COUNTING,
        ),
        *(
            Claim(
                f"{label} that trained on renamed rows is better in `ultra_long` than HSTU and "
                "FuXi-Linear, each with and without renamed rows",
                "ultra_long_renamed",
                label,
                (
                    "HSTU",
                    "FuXi-Linear",
                    "HSTU, no row renamed",
                    "FuXi-Linear, no row renamed",
                ),
            )
            for label in OURS
        ),
    ),
)
