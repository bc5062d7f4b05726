r"""HyTRec on the generated world `drift` (synthetic data).

Tastes drift while a user is away, and only the gap tells how much of the past still counts: what
decay over elapsed time is judged on. Run it by:

    python -m launch.train --config=experiments/hytrec_drift.py --workdir=runs/drift/hytrec

and its controls by adding `--config.model.time=shuffled`, `positions` or `none`,
`--config.model.branches=short`, or `--config.model.branches=long --config.model.short_events=0`.

Result (commit 87d02f1, with earlier starting values; one seed, 2026-11, 8 minutes of a core): test
HR@10 / NDCG@10 .5155 / .3128, not filtered; the long branch alone .5395 / .3267, and without time
.5135 / .3079; with `timed_attention` .5390 / .3252.
"""

from linseqrec.config import EvaluationConfig, Experiment, TrainingConfig
from linseqrec.data.source import DataConfig
from linseqrec.models.hytrec import HyTRecConfig
from linseqrec.training.optimizer import OptimizerConfig


def get_config() -> Experiment:
    return Experiment(
        name="HyTRec",
        model=HyTRecConfig(),
        data=DataConfig(world="drift", length=400, batch_size=8),
        optimizer=OptimizerConfig(
            learning_rate=2e-3, schedule="cosine", final_fraction=0.05, warmup_steps=100
        ),
        training=TrainingConfig(num_epochs=8, evaluate_every=1, log_every=50),
        evaluation=EvaluationConfig(filter_seen=("none",)),
    )
