r"""HyTRec on the generated world `ultra_long`, 1,500 users of some 1,500 events (synthetic data).

A thousand items, and fifty habits a user, of which most come once in a thousand events or less: a
model that sees the last few hundred events has not seen them. Run it by:

    python -m launch.train --config=experiments/hytrec_ultra_long.py \
        --workdir=runs/ultra_long/hytrec

and its controls by adding `--config.model.time=shuffled`, `positions` or `none`,
`--config.model.branches=short`, or `--config.model.branches=long --config.model.short_events=0`.

Result (commit 82681e2, with `--config.model.timed_attention=True`; one seed, 2026-11, 25 minutes of
a core): test HR@10 / NDCG@10 .2733 / .1545, not filtered; the short branch alone .2600 / .1464, the
long one (without `timed_attention`) .2580 / .1506; Markov .2340 / .1371, Personal Markov .3747 /
.2445, oracle .4820 / .3505.
"""

from linseqrec.config import EvaluationConfig, Experiment, TrainingConfig
from linseqrec.data.source import DataConfig
from linseqrec.models.hytrec import HyTRecConfig
from linseqrec.training.optimizer import OptimizerConfig


def get_config() -> Experiment:
    return Experiment(
        name="HyTRec",
        # Chunks of 32 are faster on a CPU.
        model=HyTRecConfig(dropout=0.0, chunk_size=32),
        data=DataConfig(
            world="ultra_long",
            world_users=1_500,
            world_length=1_500,
            world_items=1_000,
            length=1_536,
            batch_size=1,
        ),
        optimizer=OptimizerConfig(
            learning_rate=5e-3, schedule="cosine", final_fraction=0.05, warmup_steps=100
        ),
        training=TrainingConfig(num_epochs=2, evaluate_every=1, log_every=200),
        evaluation=EvaluationConfig(filter_seen=("none",)),
    )
