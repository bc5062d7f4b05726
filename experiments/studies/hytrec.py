"""HyTRec's two branches against either alone, and the forms in which the present asks.

python -m launch.study --study=experiments/studies/hytrec.py --workdir=runs/studies
"""

from linseqrec.studies.study import Arm, Claim, Study, Table

_LONG: dict[str, object] = {"model.branches": "long", "model.short_events": 0}
_SHORT: dict[str, object] = {"model.branches": "short"}
_TIMED: dict[str, object] = {"model.timed_attention": True}


def _arms(config: str, *, forms: bool = False, **shared: object) -> tuple[Arm, ...]:
    """Both branches and each alone, with attention that knows the time; and what they differ in."""
    fields = {name.replace("__", "."): value for name, value in shared.items()}
    made: dict[str, dict[str, object]] = {
        "both branches": _TIMED,
        "the long branch alone": _LONG | _TIMED,
        "the short branch alone": _SHORT | _TIMED,
        "both, softmax without time": {},
        "the long branch alone, softmax without time": _LONG,
    }
    if forms:
        made |= {
            "both, the delayed answer": _TIMED | {"model.question": "delayed"},
            "both, the short branch asks": _TIMED | {"model.question": "short"},
        }
    return tuple(Arm(label, config, fields | overrides) for label, overrides in made.items())


_CLAIM = "Two branches have over 8 % more hits than either alone (HyTRec)"

STUDY = Study(
    name="hytrec",
    title="HyTRec: two branches or one",
    about=(
        "HyTRec reads the last events by softmax attention and all before them by a linear memory. "
        "Its paper claims more than 8 % more hits than either branch alone on the longest "
        "histories. All arms of a table train by one recipe."
    ),
    tables=(
        Table(
            "ultra_long",
            "Habits in histories of some 1,500 events.",
            _arms("experiments/ultra_long.py:hytrec"),
        ),
        Table(
            "drift",
            "Tastes drift while a user is away: 33 events span a median of 65 days.",
            _arms("experiments/drift.py:hytrec", forms=True, training__num_epochs=5.0),
        ),
        Table(
            "completejourney",
            "Purchases of 2,449 households among 28,164 products.",
            _arms("experiments/completejourney.py:hytrec")[:3],
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
            "Two branches are better than the long one alone, in `drift` (HyTRec)",
            "drift",
            "both branches",
            ("the long branch alone",),
        ),
    ),
)
