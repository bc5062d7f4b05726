r"""SASRec on the generated world `repetition` (synthetic data).

The protocol and budget of `gated_deltanet_repetition.py`; run it by:

    python -m launch.train --config=experiments/sasrec_repetition.py \
        --workdir=runs/repetition/sasrec

Result (commit 87d02f1, with earlier starting values; one seed, 2026-11, 2 minutes of a core): test
HR@10 / NDCG@10 .5385 / .3223, not filtered.
"""

import dataclasses

from experiments import gated_deltanet_repetition
from linseqrec.config import Experiment
from linseqrec.models.sasrec import SASRecConfig


def get_config() -> Experiment:
    experiment = gated_deltanet_repetition.get_config()
    return dataclasses.replace(
        experiment, name="SASRec", model=SASRecConfig(max_length=400, dropout=0.0)
    )
