r"""RecGRELA on the generated world `repetition` (synthetic data).

The protocol and budget of `gated_deltanet_repetition.py`; run it by:

    python -m launch.train --config=experiments/recgrela_repetition.py \
        --workdir=runs/repetition/recgrela

Its heads start as lookups (`RELA`), which RESULTS.md compares with heads that do not.
"""

import dataclasses

from experiments import gated_deltanet_repetition
from linseqrec.config import Experiment
from linseqrec.models.recgrela import RecGRELAConfig


def get_config() -> Experiment:
    experiment = gated_deltanet_repetition.get_config()
    # One head: a lookup wants all features in a key.
    model = RecGRELAConfig(heads=1, lookup=True, positions="none", dropout=0.0)
    return dataclasses.replace(experiment, name="RecGRELA", model=model)
