r"""HyTRec on Foursquare NYC check-ins, leave-one-out.

The protocol and budget of `recgrela_foursquare.py`; run it by:

    python -m launch.train --config=experiments/hytrec_foursquare.py \
        --workdir=runs/hytrec_foursquare
"""

import dataclasses

from experiments import recgrela_foursquare
from linseqrec.config import Experiment
from linseqrec.models.hytrec import HyTRecConfig


def get_config() -> Experiment:
    experiment = recgrela_foursquare.get_config()
    return dataclasses.replace(
        experiment, name="HyTRec", model=HyTRecConfig(short_events=33, dropout=0.3)
    )
