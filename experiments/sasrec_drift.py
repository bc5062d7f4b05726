r"""SASRec on the generated world `drift` (synthetic data).

The protocol and budget of `hytrec_drift.py`; run it by:

    python -m launch.train --config=experiments/sasrec_drift.py \
        --workdir=runs/drift/sasrec

Result (commit 87d02f1, with earlier starting values; one seed, 2026-11, 2 minutes of a core): test
HR@10 / NDCG@10 .4635 / .2919, not filtered.
"""

import dataclasses

from experiments import hytrec_drift
from linseqrec.config import Experiment
from linseqrec.models.sasrec import SASRecConfig


def get_config() -> Experiment:
    experiment = hytrec_drift.get_config()
    return dataclasses.replace(experiment, name="SASRec", model=SASRecConfig(max_length=400))
