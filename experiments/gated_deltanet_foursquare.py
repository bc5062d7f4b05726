r"""Gated DeltaNet on Foursquare NYC check-ins, leave-one-out.

The protocol and budget of `recgrela_foursquare.py`; run it by:

    python -m launch.train --config=experiments/gated_deltanet_foursquare.py \
        --workdir=runs/gated_deltanet_foursquare

Result (one seed, 2026-11, 40 epochs of half a minute on a core): test HR@10 / NDCG@10 .5956 /
.4192, epoch 20, where validation NDCG@10 was best; SASRec .6020 / .4151, HyTRec .5910 / .4166.
"""

import dataclasses

from experiments import recgrela_foursquare
from linseqrec.config import Experiment
from linseqrec.models.gated_deltanet import GatedDeltaNetConfig


def get_config() -> Experiment:
    experiment = recgrela_foursquare.get_config()
    return dataclasses.replace(
        experiment, name="Gated DeltaNet", model=GatedDeltaNetConfig(dropout=0.3)
    )
