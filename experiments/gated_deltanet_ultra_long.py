r"""Gated DeltaNet on the generated world `ultra_long` (synthetic data).

The protocol and budget of `hytrec_ultra_long.py`; run it by:

    python -m launch.train --config=experiments/gated_deltanet_ultra_long.py \
        --workdir=runs/ultra_long/gated_deltanet

Result (commit 87d02f1, with earlier starting values; one seed, 2026-11, 10 minutes of a core): test
HR@10 / NDCG@10 .2427 / .1410, not filtered.
"""

import dataclasses

from experiments import hytrec_ultra_long
from linseqrec.config import Experiment
from linseqrec.models.gated_deltanet import GatedDeltaNetConfig


def get_config() -> Experiment:
    experiment = hytrec_ultra_long.get_config()
    return dataclasses.replace(
        experiment, name="Gated DeltaNet", model=GatedDeltaNetConfig(dropout=0.0, chunk_size=32)
    )
