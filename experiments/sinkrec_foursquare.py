r"""SinkRec on Foursquare NYC check-ins, leave-one-out.

76 % of the check-ins are revisits, so seen items are not filtered.

Run it by:

    python -m launch.prepare --input=../shared/data/foursquare-nyc/checkins.csv.gz \
        --output=data/foursquare-nyc
    python -m launch.train --config=experiments/sinkrec_foursquare.py \
        --workdir=runs/sinkrec_foursquare

Result (one seed, 2026-11, stopped after 16 of 40 epochs of half a minute on a core): test HR@10 /
NDCG@10 .5974 / .4140; SASRec after 40 epochs .6020 / .4151, decayed Markov .5319 / .3807.
"""

from linseqrec.config import EvaluationConfig, Experiment, TrainingConfig
from linseqrec.data.source import DataConfig
from linseqrec.models.sinkrec import SinkRecConfig
from linseqrec.training.optimizer import OptimizerConfig


def get_config() -> Experiment:
    return Experiment(
        name="SinkRec",
        # A log of a tenth of ML-1M's size overfits at a rate of 0.1.
        model=SinkRecConfig(dropout=0.3),
        data=DataConfig(folder="data/foursquare-nyc", batch_size=16),
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=100),
        training=TrainingConfig(num_epochs=40, evaluate_every=4, log_every=20),
        evaluation=EvaluationConfig(filter_seen=("none",)),
    )
