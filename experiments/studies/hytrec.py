"""HyTRec's two branches against either alone, and the three values of `question`.

    python -m launch.study --study=experiments/studies/hytrec.py --workdir=runs/studies

Results: results/hytrec.md.
"""

from typing import Any

from linseqrec.studies.study import Claim, Study, Table, arms

_LONG: dict[str, Any] = {"model.branches": "long", "model.short_events": 0}
_TIMED: dict[str, Any] = {"model.timed_attention": True}
_BRANCHES = {
    "both branches": _TIMED,
    "the long branch alone": _LONG | _TIMED,
    "the short branch alone": {"model.branches": "short"} | _TIMED,
}
_WITHOUT_TIME: dict[str, dict[str, Any]] = {
    "both, softmax without time": {},
    "the long branch alone, softmax without time": _LONG,
}
_FORMS = {
    "both, the delayed answer": _TIMED | {"model.question": "delayed"},
    "both, the short branch asks": _TIMED | {"model.question": "short"},
}

_CLAIM = "Two branches have over 8 % more hits than either alone"

STUDY = Study(
    name="hytrec",
    title="HyTRec: two branches or one",
    about=(
        "HyTRec reads the last events by softmax attention and all before them by a linear memory. "
        "The abstract of its paper reports over 8 % more hits than other models for users with the "
        "longest histories; we could not read more of it. We ask a question of our own: do two "
        "branches have over 8 % more hits than either branch alone? All arms of a table train by "
        "one recipe. The arm of the long branch alone reads all events. Softmax blocks read the "
        "time unless the arm's name denies it. The arms differ in size."
    ),
    tables=(
        Table(
            "ultra_long",
            "Habits in histories of some 1,500 events.",
            arms("experiments/ultra_long.py:hytrec", _BRANCHES | _WITHOUT_TIME),
        ),
        Table(
            "drift",
            "Tastes drift while a user is away: 33 events span a median of 65 days.",
            arms(
                "experiments/drift.py:hytrec",
                _BRANCHES | _WITHOUT_TIME | _FORMS,
                shared={"training.num_epochs": 5.0},
            ),
        ),
        Table(
            "completejourney",
            "Purchases of 2,449 households among 28,164 products, those of a basket in a random "
            "order. Scores start in favour of the household's own products (`own_items`).",
            arms("experiments/completejourney.py:hytrec", _BRANCHES),
            seeds=(0,),
        ),
    ),
    claims=(
        *(
            Claim(
                f"{_CLAIM}, in `{table}`",
                table,
                "both branches",
                ("the long branch alone", "the short branch alone"),
                metric="HR@10",
                margin=0.08,
            )
            for table in ("ultra_long", "drift")
        ),
        Claim(
            f"{_CLAIM}, after 1,000 purchases",
            "completejourney",
            "both branches",
            ("the long branch alone", "the short branch alone"),
            metric="HR@10",
            margin=0.08,
            min_events=1000,
        ),
        Claim(
            "Two branches are better than the long one alone, in `drift`",
            "drift",
            "both branches",
            ("the long branch alone",),
        ),
    ),
)
