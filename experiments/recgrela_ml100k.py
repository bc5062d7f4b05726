r"""RecGRELA, causal form, on MovieLens-100K, leave-one-out.

Run it by:

    python -m launch.prepare --input=logs/ml-100k/u.data --output=data/ml-100k
    python -m launch.train --config=experiments/recgrela_ml100k.py \
        --workdir=runs/recgrela_ml100k

Result (commit 87d02f1, with earlier starting values; one seed, 2026-11): test HR@10 / NDCG@10 .2131
/ .1126 with seen items filtered, .1357 / .0612 without, of 943 targets; decayed Markov .1951 /
.1042 and .1357 / .0693.
"""

from linseqrec.config import EvaluationConfig, Experiment, TrainingConfig
from linseqrec.data.source import DataConfig
from linseqrec.models.recgrela import RecGRELAConfig
from linseqrec.training.optimizer import OptimizerConfig


def get_config() -> Experiment:
    return Experiment(
        name="RecGRELA",
        # A log of a tenth of ML-1M's size overfits at the published rates of 0.1.
        model=RecGRELAConfig(dropout=0.3, drop_path=0.2),
        data=DataConfig(folder="data/ml-100k", batch_size=16),
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=100),
        training=TrainingConfig(num_epochs=40, evaluate_every=4, log_every=20),
        evaluation=EvaluationConfig(filter_seen=("all", "none")),
    )
