"""SASRec with full cross-entropy on MovieLens-100K, leave-one-out.

The protocol and budget of `recgrela_ml100k.py`; run it by:

    python -m launch.train --config=experiments/sasrec_ml100k.py --workdir=runs/sasrec_ml100k

Result (commit 87d02f1, with earlier starting values; one seed, 2026-11): test HR@10 / NDCG@10 .2036
/ .1075 with seen items filtered, .1326 / .0573 without, of 943 targets; RecGRELA .2131 / .1126 and
.1357 / .0612.
"""

import dataclasses

from experiments import recgrela_ml100k
from linseqrec.config import Experiment
from linseqrec.models.sasrec import SASRecConfig


def get_config() -> Experiment:
    experiment = recgrela_ml100k.get_config()
    return dataclasses.replace(experiment, name="SASRec", model=SASRecConfig(dropout=0.3))
