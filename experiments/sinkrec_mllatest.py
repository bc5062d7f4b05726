r"""SinkRec on MovieLens ml-latest-small, leave-one-out.

Run it by:

    python -m launch.prepare --input=logs/ml-latest-small/ratings.csv \
        --output=data/ml-latest-small
    python -m launch.train --config=experiments/sinkrec_mllatest.py \
        --workdir=runs/sinkrec_mllatest

Result (commit 87d02f1, with earlier starting values; one seed, 2026-11, 18 minutes of a core): test
HR@10 / NDCG@10 .0984 / .0507 with seen items filtered, .0672 / .0306 not, epoch 24 of 40, where
validation NDCG@10 was best; of one pass (`--config.model.loops=1`) .1016 / .0535 and .0689 / .0326;
the decayed Markov floor .1082 / .0598 filtered, .0852 / .0481 not. Of 610 targets: +-.012.
"""

import dataclasses

from experiments import recgrela_mllatest
from linseqrec.config import Experiment
from linseqrec.models.sinkrec import SinkRecConfig


def get_config() -> Experiment:
    experiment = recgrela_mllatest.get_config()
    return dataclasses.replace(experiment, name="SinkRec", model=SinkRecConfig(dropout=0.3))
