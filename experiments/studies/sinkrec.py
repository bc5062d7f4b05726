"""SinkRec's parts, taken out one at a time, beside Gated DeltaNet.

    python -m launch.study --study=experiments/studies/sinkrec.py --workdir=runs/studies

Results: results/sinkrec.md.
"""

from typing import Any

from linseqrec.studies.study import Arm, Claim, Study, Table, arms

_ARMS: dict[str, dict[str, Any]] = {
    "SinkRec": {},
    "without the memory": {"model.memory": False},
    "writes not suppressed": {"model.write_gate": "none"},
    "reads not purified": {"model.read_removal": False},
    "no reinjection": {"model.reinjection": False},
    "one pass": {"model.loops": 1},
}


STUDY = Study(
    name="sinkrec",
    title="SinkRec: what its memory is worth",
    about=(
        "Every mixer starts as a lookup (`linseqrec/layers/starting_values.py`). Each row changes "
        "one part of SinkRec. Gated DeltaNet stands beside it, by the recipe of the same log."
    ),
    tables=(
        Table(
            "repetition",
            "Habits (synthetic data): the recurrence has to recall. SinkRec has dropout .1, as "
            "Gated DeltaNet has.",
            (
                *arms("experiments/repetition.py:sinkrec", _ARMS, shared={"model.dropout": 0.1}),
                Arm("Gated DeltaNet", "experiments/repetition.py:gated_deltanet"),
            ),
        ),
        Table(
            "foursquare",
            "Check-ins in New York, 76 % of them revisits. Gated DeltaNet has two blocks and keys "
            "of 128, which were chosen on this log; SinkRec has its default sizes.",
            (
                *arms("experiments/foursquare.py:sinkrec", _ARMS),
                Arm("Gated DeltaNet", "experiments/foursquare.py:gated_deltanet"),
            ),
        ),
        Table(
            "ml100k",
            "Film ratings of 943 users, who rate no film twice. SinkRec has dropout .3 around its "
            "memory, found on this log's validation.",
            (
                *arms("experiments/ml100k.py:sinkrec", _ARMS),
                Arm(
                    "no dropout around the memory",
                    "experiments/ml100k.py:sinkrec",
                    {"model.memory_dropout": 0.0},
                ),
                Arm("Gated DeltaNet", "experiments/ml100k.py:gated_deltanet"),
            ),
        ),
    ),
    claims=tuple(
        Claim(
            f"SinkRec is better than {other}, on `{table}` (SinkRec)",
            table,
            "SinkRec",
            (label,),
            filter_seen=filter_seen,
        )
        for table, filter_seen in (
            ("repetition", "none"),
            ("foursquare", "none"),
            ("ml100k", "all"),
        )
        for label, other in {
            "without the memory": "SinkRec without its memory",
            "reads not purified": "SinkRec that does not purify its reads",
            "Gated DeltaNet": "Gated DeltaNet",
        }.items()
    ),
)
