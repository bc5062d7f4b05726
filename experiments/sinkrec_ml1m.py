r"""SinkRec on MovieLens-1M with timestamps, leave-one-out.

20 % of this log's timestamps are imputed: what the model learns of time is to be read with care.

Run it by:

    python -m launch.prepare --input=logs/ml-1m/ratings.tsv.gz --output=data/ml-1m-times
    python -m launch.train --config=experiments/sinkrec_ml1m.py --workdir=runs/sinkrec_ml1m

Result (commit 87d02f1, with earlier starting values; 2026-11, 77 minutes, the last 33 on two
cores): test HR@10 / NDCG@10 .3439 / .2016 with seen items filtered, .2752 / .1512 not, epoch 28 of
30, where validation NDCG@10 not filtered was best; on another processor .3462 / .2052 and .2770 /
.1528, of one pass (`--config.model.loops=1`) .3387 / .1986 and .2697 / .1458. An earlier form,
without `attention_convolution`, its quantisation loss summed over features and its reconstruction
loss not taken relative to the windows, had .3505 / .2075 and .2785 / .1544.
"""

import dataclasses

from experiments import hytrec_ml1m
from linseqrec.config import Experiment
from linseqrec.models.sinkrec import SinkRecConfig


def get_config() -> Experiment:
    return dataclasses.replace(hytrec_ml1m.get_config(), name="SinkRec", model=SinkRecConfig())
