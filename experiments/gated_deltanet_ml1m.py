r"""Gated DeltaNet on MovieLens-1M, ids only, leave-one-out.

Run it by:

    python -m launch.prepare --input=logs/ml-1m/ml-1m.txt.gz --output=data/ml-1m
    python -m launch.train --config=experiments/gated_deltanet_ml1m.py \
        --workdir=runs/gated_deltanet_ml1m

Result (commit 87d02f1, with earlier starting values; 2026-11, 60 minutes on a core of a shared
CPU): test HR@10 / NDCG@10 .2776 / .1558 with seen items not filtered, .3474 / .2039 with them
filtered; with `--config.data.folder=data/ml-1m-times`, the same sequences numbered otherwise, .2752
/ .1533 and .3392 / .1995.
"""

from linseqrec.config import EvaluationConfig, Experiment, TrainingConfig
from linseqrec.data.source import DataConfig
from linseqrec.models.gated_deltanet import GatedDeltaNetConfig
from linseqrec.training.optimizer import OptimizerConfig


def get_config() -> Experiment:
    return Experiment(
        name="Gated DeltaNet",
        model=GatedDeltaNetConfig(),
        data=DataConfig(folder="data/ml-1m", batch_size=16),
        optimizer=OptimizerConfig(
            learning_rate=1e-3, schedule="cosine", final_fraction=0.05, warmup_steps=300
        ),
        training=TrainingConfig(num_epochs=30, evaluate_every=2),
        evaluation=EvaluationConfig(filter_seen=("all", "none")),
    )
