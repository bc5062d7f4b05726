r"""Gated DeltaNet on MovieLens ml-latest-small, leave-one-out.

The protocol and budget of `recgrela_mllatest.py`; run it by:

    python -m launch.train --config=experiments/gated_deltanet_mllatest.py \
        --workdir=runs/gated_deltanet_mllatest

Result (commit 87d02f1, with earlier starting values; one seed, 2026-11, some 7 minutes of a core):
test HR@10 / NDCG@10 .0902 / .0480 with seen items filtered; .0590 / .0294 not filtered. The decayed
Markov floor is .1082 / .0598, filtered.
"""

import dataclasses

from experiments import recgrela_mllatest
from linseqrec.config import Experiment
from linseqrec.models.gated_deltanet import GatedDeltaNetConfig


def get_config() -> Experiment:
    experiment = recgrela_mllatest.get_config()
    return dataclasses.replace(
        experiment, name="Gated DeltaNet", model=GatedDeltaNetConfig(dropout=0.3)
    )
