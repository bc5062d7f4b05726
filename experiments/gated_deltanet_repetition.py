r"""Gated DeltaNet on the generated world `repetition` (synthetic data).

Over half of the events are habits, which recur: what SinkRec's claim of a state sink is judged on,
against this model at about equal parameters (283 k here, 307 k there). Run it by:

    python -m launch.train --config=experiments/gated_deltanet_repetition.py \
        --workdir=runs/repetition/gated_deltanet

Result (three seeds, 2026-11, 5 to 8 minutes of a core): test HR@10 / NDCG@10 .5523 +- .0289 /
.3379 +- .0256, not filtered (.5740 / .3623, .5195 / .3112, .5635 / .3401); with
`--config.model.num_layers=2` .5875 / .3915, another seed .5830 / .3714, the first on another
machine .5945 / .3967; decayed Markov .3740 / .2205, oracle .7925 / .6511. Batches are small because
updates are what these models lack: in as many epochs at a rate of 2e-3 with dropout, batches of
eight came to .5320 / .3068, and batches of two to .5610 / .3408.
"""

from linseqrec.config import EvaluationConfig, Experiment, TrainingConfig
from linseqrec.data.source import DataConfig
from linseqrec.models.gated_deltanet import GatedDeltaNetConfig
from linseqrec.training.optimizer import OptimizerConfig


def get_config() -> Experiment:
    return Experiment(
        name="Gated DeltaNet",
        # Chunks of 32 are faster on a CPU.
        model=GatedDeltaNetConfig(dropout=0.0, chunk_size=32),
        data=DataConfig(world="repetition", length=400, batch_size=2),
        optimizer=OptimizerConfig(
            learning_rate=5e-3, schedule="cosine", final_fraction=0.05, warmup_steps=100
        ),
        training=TrainingConfig(num_epochs=8, evaluate_every=1, log_every=200),
        evaluation=EvaluationConfig(filter_seen=("none",)),
    )
