r"""SinkRec on the generated world `repetition` (synthetic data).

The protocol and budget of `gated_deltanet_repetition.py`; run it by:

    python -m launch.train --config=experiments/sinkrec_repetition.py \
        --workdir=runs/repetition/sinkrec

Result (one seed, 2026-11, 15 minutes of a core): test HR@10 / NDCG@10 .5100 / .2969, not filtered;
Gated DeltaNet .5320 / .3068; with `--config.model.attention_window=16` .4780 / .2783. RESULTS.md
has the state sink of all three.
"""

import dataclasses

from experiments import gated_deltanet_repetition
from linseqrec.config import Experiment
from linseqrec.models.sinkrec import SinkRecConfig


def get_config() -> Experiment:
    experiment = gated_deltanet_repetition.get_config()
    return dataclasses.replace(experiment, name="SinkRec", model=SinkRecConfig(dropout=0.0))
