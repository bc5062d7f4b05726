r"""Gated DeltaNet on Foursquare NYC check-ins, leave-one-out.

The protocol and budget of `recgrela_foursquare.py`; run it by:

    python -m launch.train --config=experiments/gated_deltanet_foursquare.py \
        --workdir=runs/gated_deltanet_foursquare

Result (commit 87d02f1, with earlier starting values; seeds 0, 1 and 2, 2026-11, 8 to 20 minutes of
a core each): test HR@10 / NDCG@10 .5953 +- .0023 / .4266 +- .0072, not filtered, of 1,083 targets;
seed 0 .5956 / .4192, epoch 20 of 40, where validation NDCG@10 was best. Personal Markov .5882 /
.4161.
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
