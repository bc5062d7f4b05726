r"""SinkRec on the generated world `repetition` (synthetic data).

The protocol and budget of `gated_deltanet_repetition.py`; run it by:

    python -m launch.train --config=experiments/sinkrec_repetition.py \
        --workdir=runs/repetition/sinkrec

Result (one seed, 2026-11, 8 minutes of a core): test HR@10 / NDCG@10 .5390 / .3214, not filtered;
Gated DeltaNet .5740 / .3623; with `--config.model.attention_window=1` .5780 / .3622. RESULTS.md has
the ablation arms, and the state sink of some.
"""

import dataclasses

from experiments import gated_deltanet_repetition
from linseqrec.config import Experiment
from linseqrec.models.sinkrec import SinkRecConfig


def get_config() -> Experiment:
    experiment = gated_deltanet_repetition.get_config()
    return dataclasses.replace(experiment, name="SinkRec", model=SinkRecConfig(dropout=0.0, chunk_size=32))
