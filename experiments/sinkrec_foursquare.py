r"""SinkRec on Foursquare NYC check-ins, leave-one-out.

76 % of the check-ins are revisits, so seen items are not filtered.

Run it by:

    python -m launch.prepare --input=logs/foursquare-nyc/checkins.csv.gz \
        --output=data/foursquare-nyc
    python -m launch.train --config=experiments/sinkrec_foursquare.py \
        --workdir=runs/sinkrec_foursquare

Result (one seed, 2026-11, epoch 16 of 40, half a minute to a minute each on a core): test HR@10 /
NDCG@10 .5900 / .4200, of one pass (`--config.model.loops=1`) .5817 / .4176; SASRec .6020 / .4151,
personal Markov .5882 / .4161; standard error of HR@10 .015. The same on another processor .5873 /
.4114, epoch 20; another seed (1) .5845 / .4190.
"""

import dataclasses

from experiments import recgrela_foursquare
from linseqrec.config import Experiment
from linseqrec.models.sinkrec import SinkRecConfig


def get_config() -> Experiment:
    experiment = recgrela_foursquare.get_config()
    return dataclasses.replace(experiment, name="SinkRec", model=SinkRecConfig(dropout=0.3))
