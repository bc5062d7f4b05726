r"""RecGRELA on the generated world `repetition` (synthetic data).

The protocol and budget of `gated_deltanet_repetition.py`; run it by:

    python -m launch.train --config=experiments/recgrela_repetition.py \
        --workdir=runs/repetition/recgrela

Result (one seed, 2026-11, 4 minutes of a core): test HR@10 / NDCG@10 .5700 / .3386, not filtered.
"""

import dataclasses

from experiments import gated_deltanet_repetition
from linseqrec.config import Experiment
from linseqrec.models.recgrela import RecGRELAConfig


def get_config() -> Experiment:
    experiment = gated_deltanet_repetition.get_config()
    return dataclasses.replace(
        experiment, name="RecGRELA", model=RecGRELAConfig(max_length=400, dropout=0.0)
    )
