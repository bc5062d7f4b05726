r"""SASRec with full cross-entropy on MovieLens ml-latest-small, leave-one-out.

The protocol and budget of `recgrela_mllatest.py`; run it by:

    python -m launch.train --config=experiments/sasrec_mllatest.py \
        --workdir=runs/sasrec_mllatest

Result (commit 87d02f1, with earlier starting values; one seed, 2026-11): test HR@10 / NDCG@10 .0934
/ .0514 with seen items filtered, of 610 targets; below the decayed Markov floor, .1082 / .0598.
"""

import dataclasses

from experiments import recgrela_mllatest
from linseqrec.config import Experiment
from linseqrec.models.sasrec import SASRecConfig


def get_config() -> Experiment:
    experiment = recgrela_mllatest.get_config()
    return dataclasses.replace(experiment, name="SASRec", model=SASRecConfig(dropout=0.3))
