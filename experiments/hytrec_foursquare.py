r"""HyTRec on Foursquare NYC check-ins, leave-one-out.

The protocol and budget of `recgrela_foursquare.py`; run it by:

    python -m launch.train --config=experiments/hytrec_foursquare.py \
        --workdir=runs/hytrec_foursquare

Result (one seed, 2026-11, 20 minutes on a core of a shared CPU): test HR@10 / NDCG@10 .5910 /
.4166, epoch 12 of 40, where validation NDCG@10 was best; SASRec .6020 / .4151, RecGRELA .5854 /
.4042. With `--config.model.timed_attention=True` .5873 / .4143, epoch 40.
Another seed (1) .5956 / .4172.
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
