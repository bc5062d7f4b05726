r"""Gated DeltaNet on MovieLens-1M, ids only, leave-one-out.

Run it by:

    python -m launch.prepare --input=logs/ml-1m/ml-1m.txt.gz --output=data/ml-1m
    python -m launch.train --config=experiments/gated_deltanet_ml1m.py \
        --workdir=runs/gated_deltanet_ml1m

Result (commit 75eb06a; one seed, 2026-11, 43 minutes of a core; with
`--config.data.folder=data/ml-1m-times`, the same sequences numbered otherwise): test HR@10 /
NDCG@10 .3416 / .2005 with seen items filtered, .2748 / .1523 with them not filtered; decayed Markov
.2490 / .1434 and .2015 / .1116. Batches are small because updates are what this model lacks.
"""

from linseqrec.config import EvaluationConfig, Experiment, TrainingConfig
from linseqrec.data.source import DataConfig
from linseqrec.models.gated_deltanet import GatedDeltaNetConfig
from linseqrec.training.optimizer import OptimizerConfig


def get_config() -> Experiment:
    return Experiment(
        name="Gated DeltaNet",
        # Chunks of 32 are faster on a CPU.
        model=GatedDeltaNetConfig(dropout=0.2, chunk_size=32),
        data=DataConfig(folder="data/ml-1m", batch_size=4),
        optimizer=OptimizerConfig(
            learning_rate=2e-3, schedule="cosine", final_fraction=0.05, warmup_steps=300
        ),
        training=TrainingConfig(num_epochs=16, evaluate_every=2),
        evaluation=EvaluationConfig(filter_seen=("all", "none")),
    )
