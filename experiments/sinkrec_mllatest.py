r"""SinkRec on MovieLens ml-latest-small, leave-one-out.

Run it by:

    python -m launch.prepare --input=../shared/data/ml-latest-small/ratings.csv \
        --output=data/ml-latest-small
    python -m launch.train --config=experiments/sinkrec_mllatest.py \
        --workdir=runs/sinkrec_mllatest
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
        data=DataConfig(folder="data/ml-latest-small", batch_size=16),
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=100),
        training=TrainingConfig(num_epochs=40, evaluate_every=4, log_every=20),
        evaluation=EvaluationConfig(filter_seen=("all", "none")),
    )
