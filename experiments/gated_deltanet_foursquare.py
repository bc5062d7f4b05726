r"""Gated DeltaNet on Foursquare NYC check-ins, leave-one-out.

The protocol and budget of `recgrela_foursquare.py`; run it by:

    python -m launch.train --config=experiments/gated_deltanet_foursquare.py \
        --workdir=runs/gated_deltanet_foursquare
"""

import dataclasses

from experiments import recgrela_foursquare
from linseqrec.config import Experiment
from linseqrec.models.gated_deltanet import GatedDeltaNetConfig


def get_config() -> Experiment:
    experiment = recgrela_foursquare.get_config()
    return dataclasses.replace(
        experiment, name="Gated DeltaNet", model=GatedDeltaNetConfig(dropout=0.3)
    )
