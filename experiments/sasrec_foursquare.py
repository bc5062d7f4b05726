r"""SASRec with full cross-entropy on Foursquare NYC check-ins, leave-one-out.

The protocol and budget of `recgrela_foursquare.py`; run it by:

    python -m launch.train --config=experiments/sasrec_foursquare.py \
        --workdir=runs/sasrec_foursquare

Result (one seed, 2026-11): test HR@10 / NDCG@10 .6020 / .4151, not filtered, of 1,083 targets;
decayed Markov .5319 / .3807.
"""

import dataclasses

from experiments import recgrela_foursquare
from linseqrec.config import Experiment
from linseqrec.models.sasrec import SASRecConfig


def get_config() -> Experiment:
    experiment = recgrela_foursquare.get_config()
    return dataclasses.replace(experiment, name="SASRec", model=SASRecConfig(dropout=0.3))
