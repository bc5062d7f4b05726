r"""SinkRec on the generated world `repetition` (synthetic data).

The protocol and budget of `gated_deltanet_repetition.py`; run it by:

    python -m launch.train --config=experiments/sinkrec_repetition.py \
        --workdir=runs/repetition/sinkrec

Result (two seeds, 2026-11, 12 to 24 minutes of a core): test HR@10 / NDCG@10 .6102 / .4294, not
filtered (seeds .6140 / .4256 and .6065 / .4332), without memory .6020 / .4160, of one pass
(`--config.model.loops=1`) .6298 / .4550, all before the codes were seeded anew, with which one
seed has .6105 / .4339, of one pass .6295 / .4578, without memory .6220 / .4421; Gated DeltaNet of
two blocks .5853 / .3815; the personal Markov floor .6885 / .5015. RESULTS.md has the other arms and
the state sink.
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
