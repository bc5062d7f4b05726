r"""SinkRec on MovieLens ml-latest-small, leave-one-out.

Run it by:

    python -m launch.prepare --input=../shared/data/ml-latest-small/ratings.csv \
        --output=data/ml-latest-small
    python -m launch.train --config=experiments/sinkrec_mllatest.py \
        --workdir=runs/sinkrec_mllatest
"""

import dataclasses

from experiments import recgrela_mllatest
from linseqrec.config import Experiment
from linseqrec.models.sinkrec import SinkRecConfig


def get_config() -> Experiment:
    experiment = recgrela_mllatest.get_config()
    return dataclasses.replace(experiment, name="SinkRec", model=SinkRecConfig(dropout=0.3))
