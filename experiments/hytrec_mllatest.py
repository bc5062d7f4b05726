r"""HyTRec on MovieLens ml-latest-small, leave-one-out.

The protocol and budget of `recgrela_mllatest.py`; run it by:

    python -m launch.train --config=experiments/hytrec_mllatest.py \
        --workdir=runs/hytrec_mllatest

Result (commit 87d02f1, with earlier starting values; one seed, 2026-11): test HR@10 / NDCG@10 .0967
/ .0468 with seen items filtered, epoch 16; the same on another processor .1115 / .0542; the decayed
Markov floor .1082 / .0598. Of 610 targets: +-.012.
"""

import dataclasses

from experiments import recgrela_mllatest
from linseqrec.config import Experiment
from linseqrec.models.hytrec import HyTRecConfig


def get_config() -> Experiment:
    experiment = recgrela_mllatest.get_config()
    return dataclasses.replace(
        experiment, name="HyTRec", model=HyTRecConfig(short_events=33, dropout=0.3)
    )
