r"""SinkRec on Foursquare NYC check-ins, leave-one-out.

76 % of the check-ins are revisits, so seen items are not filtered.

Run it by:

    python -m launch.prepare --input=logs/foursquare-nyc/checkins.csv.gz \
        --output=data/foursquare-nyc
    python -m launch.train --config=experiments/sinkrec_foursquare.py \
        --workdir=runs/sinkrec_foursquare

Result (commit 87d02f1, with earlier starting values; seeds 0, 1 and 2, 2026-11, some 15 to 40
minutes of a core each): test HR@10 / NDCG@10 .5866 +- .0030 / .4197 +- .0006, not filtered, of
1,083 targets; seed 0 .5900 / .4200, epoch 16 of 40, where validation NDCG@10 was best, on another
processor .5873 / .4114, and of one pass (`--config.model.loops=1`) .5817 / .4176. Personal Markov
.5882 / .4161.
"""

import dataclasses

from experiments import recgrela_foursquare
from linseqrec.config import Experiment
from linseqrec.models.sinkrec import SinkRecConfig


def get_config() -> Experiment:
    experiment = recgrela_foursquare.get_config()
    return dataclasses.replace(experiment, name="SinkRec", model=SinkRecConfig(dropout=0.3))
