r"""SinkRec on MovieLens-1M with timestamps, leave-one-out.

20 % of this log's timestamps are imputed: what the model learns of time is to be read with care,
and its ablations without time beside it.

Run it by:

    python -m launch.prepare --input=../shared/data/ml-1m/ratings.tsv.gz --output=data/ml-1m-times
    python -m launch.train --config=experiments/sinkrec_ml1m.py --workdir=runs/sinkrec_ml1m
"""

from linseqrec.config import EvaluationConfig, Experiment, TrainingConfig
from linseqrec.data.source import DataConfig
from linseqrec.models.sinkrec import SinkRecConfig
from linseqrec.training.optimizer import OptimizerConfig


def get_config() -> Experiment:
    return Experiment(
        name="SinkRec",
        note="20 % of the timestamps are imputed",
        model=SinkRecConfig(),
        data=DataConfig(folder="data/ml-1m-times", batch_size=16),
        optimizer=OptimizerConfig(
            learning_rate=1e-3, schedule="cosine", final_fraction=0.05, warmup_steps=300
        ),
        training=TrainingConfig(num_epochs=30, evaluate_every=2),
        evaluation=EvaluationConfig(filter_seen=("none", "all")),
    )
