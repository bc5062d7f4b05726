r"""HyTRec on the generated world `ultra_long`, 1,500 users of some 1,500 events (synthetic data).

Fifty habits a user, of which most come once in a thousand events or less: a model that sees the
last few hundred events has not seen them. Run it by:

    python -m launch.train --config=experiments/hytrec_ultra_long.py \
        --workdir=runs/ultra_long/hytrec

and its controls by adding `--config.model.time=shuffled`, `positions` or `none`,
`--config.model.branches=short`, or `--config.model.branches=long --config.model.short_events=0`.

Result (one seed, 2026-11, half an hour of processor time): test HR@10 / NDCG@10 .2260 / .1291, not
filtered; the long branch alone .2333 / .1340. Neither beats the Markov floor (.2300 / .1404) in
these four epochs. RESULTS.md has what follows from it, and what does not.
"""

from linseqrec.config import EvaluationConfig, Experiment, TrainingConfig
from linseqrec.data.source import DataConfig
from linseqrec.models.hytrec import HyTRecConfig
from linseqrec.training.optimizer import OptimizerConfig


def get_config() -> Experiment:
    return Experiment(
        name="HyTRec",
        model=HyTRecConfig(),
        data=DataConfig(
            world="ultra_long",
            world_users=1_500,
            world_length=1_500,
            length=1_536,
            batch_size=2,
        ),
        optimizer=OptimizerConfig(
            learning_rate=2e-3, schedule="cosine", final_fraction=0.05, warmup_steps=100
        ),
        training=TrainingConfig(num_epochs=4, evaluate_every=1, log_every=50),
        evaluation=EvaluationConfig(filter_seen=("none",)),
    )
