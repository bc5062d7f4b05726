r"""SASRec with full cross-entropy on Foursquare NYC check-ins, leave-one-out.

The protocol and budget of `recgrela_foursquare.py`; run it by:

    python -m launch.train --config=experiments/sasrec_foursquare.py \
        --workdir=runs/sasrec_foursquare

Result (commit 87d02f1, with earlier starting values; seeds 0, 1 and 2, 2026-11, some 5 minutes of a
core each): test HR@10 / NDCG@10 .5989 +- .0028 / .4166 +- .0020, not filtered, of 1,083 targets;
seed 0 .6020 / .4151. Personal Markov .5882 / .4161, decayed Markov .5319 / .3807.
"""

import dataclasses

from experiments import recgrela_foursquare
from linseqrec.config import Experiment
from linseqrec.models.sasrec import SASRecConfig


def get_config() -> Experiment:
    experiment = recgrela_foursquare.get_config()
    return dataclasses.replace(experiment, name="SASRec", model=SASRecConfig(dropout=0.3))
