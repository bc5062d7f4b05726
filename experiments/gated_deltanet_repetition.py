r"""Gated DeltaNet on the generated world `repetition` (synthetic data).

Over half of the events are habits, which recur: a model has to recall what followed an item before.
297 k parameters; two heads start as lookups of one and two events back. Run it by:

    python -m launch.train --config=experiments/gated_deltanet_repetition.py \
        --workdir=runs/repetition/gated_deltanet

Result (seed 0, 2026-11, 20 minutes of a core): test HR@1 / HR@10 / NDCG@10 .3465 / .6650 / .4924,
not filtered; Personal Markov .3355 / .6885 / .5015, decayed Markov .1055 / .3740 / .2205, oracle
.5305 / .7925 / .6511. RESULTS.md has other sizes. Batches are small because updates are what these
models lack.
"""

from linseqrec.config import EvaluationConfig, Experiment, TrainingConfig
from linseqrec.data.source import DataConfig
from linseqrec.models.gated_deltanet import GatedDeltaNetConfig
from linseqrec.training.optimizer import OptimizerConfig


def get_config() -> Experiment:
    return Experiment(
        name="Gated DeltaNet",
        # Chunks of 32 are faster on a CPU.
        model=GatedDeltaNetConfig(
            width=80,
            num_layers=2,
            key_width=128,
            value_width=80,
            feed_forward=2,
            dropout=0.1,
            chunk_size=32,
        ),
        data=DataConfig(world="repetition", length=400, batch_size=2),
        optimizer=OptimizerConfig(
            learning_rate=5e-3, schedule="cosine", final_fraction=0.05, warmup_steps=100
        ),
        training=TrainingConfig(num_epochs=12, evaluate_every=1, log_every=200),
        evaluation=EvaluationConfig(filter_seen=("none",)),
    )
