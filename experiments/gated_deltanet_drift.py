r"""Gated DeltaNet on the generated world `drift` (synthetic data).

The protocol and budget of `hytrec_drift.py`; run it by:

    python -m launch.train --config=experiments/gated_deltanet_drift.py \
        --workdir=runs/drift/gated_deltanet

Result (commit 87d02f1, with earlier starting values; one seed, 2026-11): test HR@10 / NDCG@10 .5265
/ .3198, not filtered, epoch 6 of 8; HyTRec .5155 / .3128, decayed Markov .5105 / .3137.
"""

import dataclasses

from experiments import hytrec_drift
from linseqrec.config import Experiment
from linseqrec.models.gated_deltanet import GatedDeltaNetConfig


def get_config() -> Experiment:
    experiment = hytrec_drift.get_config()
    return dataclasses.replace(experiment, name="Gated DeltaNet", model=GatedDeltaNetConfig())
