r"""Gated DeltaNet on the generated world `repetition` (synthetic data).

Over half of the events are habits, which recur: a model has to recall what followed an item before.
285 k parameters; three heads start as lookups of one, two and three events back. Run it by:

    python -m launch.train --config=experiments/gated_deltanet_repetition.py \
        --workdir=runs/repetition/gated_deltanet

Result (seed 0, 2026-11, 13 minutes of a core): test HR@10 / NDCG@10 .6585 / .4818, not filtered;
Personal Markov .6885 / .5015, decayed Markov .3740 / .2205, oracle .7925 / .6511. RESULTS.md has
smaller states. Batches are small because updates are what these models lack.
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
            num_layers=2, heads=3, key_width=96, value_width=64, dropout=0.1, chunk_size=32
        ),
        data=DataConfig(world="repetition", length=400, batch_size=2),
        optimizer=OptimizerConfig(
            learning_rate=5e-3, schedule="cosine", final_fraction=0.05, warmup_steps=100
        ),
        training=TrainingConfig(num_epochs=12, evaluate_every=1, log_every=200),
        evaluation=EvaluationConfig(filter_seen=("none",)),
    )
