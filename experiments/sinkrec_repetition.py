r"""SinkRec on the generated world `repetition` (synthetic data).

The protocol and budget of `gated_deltanet_repetition.py`; run it by:

    python -m launch.train --config=experiments/sinkrec_repetition.py \
        --workdir=runs/repetition/sinkrec

Result (commit 87d02f1, with earlier starting values; 2026-11, 12 to 24 minutes of a core, of one
pass 9 to 11): test HR@10 / NDCG@10 .6105 / .4339, not filtered (one seed); of one pass
(`--config.model.loops=1`) .6307 +- .0013 / .4582 +- .0012 over three seeds, without memory .6250 +-
.0026 / .4478 +- .0054; Gated DeltaNet .5523 / .3379, of two blocks .5853 / .3815; the personal
Markov floor .6885 / .5015.
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
