r"""HyTRec on Foursquare NYC check-ins, leave-one-out.

The protocol and budget of `recgrela_foursquare.py`; run it by:

    python -m launch.train --config=experiments/hytrec_foursquare.py \
        --workdir=runs/hytrec_foursquare

Result (commit 87d02f1, with earlier starting values; seeds 0, 1 and 2, 2026-11, 15 to 20 minutes of
a core each): test HR@10 / NDCG@10 .5941 +- .0027 / .4187 +- .0031, not filtered, of 1,083 targets;
seed 0 .5910 / .4166, epoch 12 of 40, where validation NDCG@10 was best, and with
`--config.model.timed_attention=True` .5873 / .4143. Personal Markov .5882 / .4161.
"""

import dataclasses

from experiments import recgrela_foursquare
from linseqrec.config import Experiment
from linseqrec.models.hytrec import HyTRecConfig


def get_config() -> Experiment:
    experiment = recgrela_foursquare.get_config()
    return dataclasses.replace(
        experiment, name="HyTRec", model=HyTRecConfig(short_events=33, dropout=0.3)
    )
