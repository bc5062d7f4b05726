"""RecGRELA's parts, taken out one at a time.

    python -m launch.study --study=experiments/studies/recgrela.py --workdir=runs/studies

Results: results/recgrela.md.
"""

from typing import Any

from linseqrec.studies.study import Claim, Study, Table, arms

_ARMS: dict[str, dict[str, Any]] = {
    "RecGRELA": {},
    "without the shortcut": {"model.shortcut": False},
    "without the gate": {"model.gate": False},
    "without the input gate": {"model.input_gate": False},
    "without rotation": {"model.positions": "none"},
    "with learned positions": {"model.positions": "learned"},
    "without DropPath": {"model.drop_path": 0.0},
    "a fixed denominator": {"model.denominator_events": 200},
}

STUDY = Study(
    name="recgrela",
    title="RecGRELA: what its parts are worth",
    about=(
        "The causal form, which is ours: it trains on every position and streams. Each row changes "
        "one part of it. The shortcut is the local branch beside the linear attention."
    ),
    tables=(
        Table(
            "ml100k",
            "Film ratings of 943 users.",
            arms("experiments/ml100k.py:recgrela", _ARMS),
        ),
        Table(
            "foursquare",
            "Check-ins in New York, 76 % of them revisits. The best baseline of this log, Personal "
            "popularity, is in [real logs](real_logs.md) alone.",
            arms("experiments/foursquare.py:recgrela", _ARMS),
        ),
    ),
    claims=tuple(
        Claim(
            f"RecGRELA is better with {part} than without, on `{table}` (RecGRELA)",
            table,
            "RecGRELA",
            (f"without {part}",),
            filter_seen="all" if table == "ml100k" else "none",
        )
        for table in ("ml100k", "foursquare")
        for part in ("the shortcut", "the gate", "rotation")
    ),
)
