r"""SASRec on the generated world `ultra_long` (synthetic data).

The protocol and budget of `hytrec_ultra_long.py`; run it by:

    python -m launch.train --config=experiments/sasrec_ultra_long.py \
        --workdir=runs/ultra_long/sasrec

Result (commit 87d02f1, with earlier starting values; one seed, 2026-11, 4 minutes of a core): test
HR@10 / NDCG@10 .2640 / .1468, not filtered.
"""

import dataclasses

from experiments import hytrec_ultra_long
from linseqrec.config import Experiment
from linseqrec.models.sasrec import SASRecConfig


def get_config() -> Experiment:
    experiment = hytrec_ultra_long.get_config()
    return dataclasses.replace(
        experiment, name="SASRec", model=SASRecConfig(max_length=1_536, dropout=0.0)
    )
