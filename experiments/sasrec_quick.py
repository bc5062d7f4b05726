"""SASRec with full cross-entropy on a small generated world: the quick start's baseline.

Run it by:

    python -m launch.train --config=experiments/sasrec_quick.py --workdir=runs/sasrec_quick
"""

import dataclasses

from experiments import recgrela_quick
from linseqrec.config import Experiment
from linseqrec.models.sasrec import SASRecConfig


def get_config() -> Experiment:
    return dataclasses.replace(
        recgrela_quick.get_config(), name="SASRec", model=SASRecConfig(dropout=0.1)
    )
