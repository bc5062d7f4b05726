r"""SASRec with full cross-entropy on Foursquare NYC check-ins, leave-one-out.

The protocol and budget of `recgrela_foursquare.py`; run it by:

    python -m launch.train --config=experiments/sasrec_foursquare.py \
        --workdir=runs/sasrec_foursquare
"""

import dataclasses

from experiments import recgrela_foursquare
from linseqrec.config import Experiment
from linseqrec.models.sasrec import SASRecConfig


def get_config() -> Experiment:
    experiment = recgrela_foursquare.get_config()
    return dataclasses.replace(experiment, name="SASRec", model=SASRecConfig(dropout=0.3))
