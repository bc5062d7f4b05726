r"""SinkRec on the generated world `repetition` (synthetic data).

The protocol and budget of `gated_deltanet_repetition.py`; run it by:

    python -m launch.train --config=experiments/sinkrec_repetition.py \
        --workdir=runs/repetition/sinkrec

Result (commit 82681e2; one seed, 2026-11, 22 minutes of a core), one pass
(`--config.model.loops=1 --config.model.dropout=.1`): test HR@1 / HR@10 / NDCG@10 .3125 / .6505 /
.4696, not filtered; Gated DeltaNet of equal size .3465 / .6650 / .4924; Personal Markov .3355 /
.6885 / .5015. More passes have not been run since.
"""

import dataclasses

from experiments import gated_deltanet_repetition
from linseqrec.config import Experiment
from linseqrec.models.sinkrec import SinkRecConfig


def get_config() -> Experiment:
    experiment = gated_deltanet_repetition.get_config()
    # Chunks of 32 are faster on a CPU.
    model = SinkRecConfig(dropout=0.0, chunk_size=32)
    return dataclasses.replace(experiment, name="SinkRec", model=model)
