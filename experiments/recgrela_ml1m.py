"""RecGRELA, causal form, on MovieLens-1M, ids only, leave-one-out.

Run it by:

    python -m launch.prepare --input=logs/ml-1m/ml-1m.txt.gz --output=data/ml-1m
    python -m launch.train --config=experiments/recgrela_ml1m.py --workdir=runs/recgrela_ml1m

Result (commit 82681e2; one seed, 2026-11, 35 minutes of a core; with
`--config.data.folder=data/ml-1m-times`, the same sequences numbered otherwise): test HR@10 /
NDCG@10 .3478 / .2046 with seen items filtered, .2820 / .1591 with them not filtered (published,
bidirectional: .3311 / .1959). Model and dropout are the published setting; batches of 4 rows and
the cosine schedule are ours, as in `gated_deltanet_ml1m.py`.
"""

from linseqrec.config import EvaluationConfig, Experiment, TrainingConfig
from linseqrec.data.source import DataConfig
from linseqrec.models.recgrela import RecGRELAConfig
from linseqrec.training.optimizer import OptimizerConfig


def get_config() -> Experiment:
    return Experiment(
        name="RecGRELA",
        model=RecGRELAConfig(),
        data=DataConfig(folder="data/ml-1m", batch_size=4),
        optimizer=OptimizerConfig(
            learning_rate=2e-3, schedule="cosine", final_fraction=0.05, warmup_steps=300
        ),
        training=TrainingConfig(num_epochs=16, evaluate_every=2),
        evaluation=EvaluationConfig(filter_seen=("all", "none")),
    )
