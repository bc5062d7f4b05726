r"""RecGRELA, causal form, on Foursquare NYC check-ins, leave-one-out.

76 % of the check-ins are revisits, so seen items are not filtered.

Run it by:

    python -m launch.prepare --input=logs/foursquare-nyc/checkins.csv.gz \
        --output=data/foursquare-nyc
    python -m launch.train --config=experiments/recgrela_foursquare.py \
        --workdir=runs/recgrela_foursquare

Result (commit 87d02f1, with earlier starting values; seeds 0, 1 and 2, 2026-11, some 12 minutes of
a core each): test HR@10 / NDCG@10 .5823 +- .0039 / .4074 +- .0031, not filtered, of 1,083 targets;
seed 0 .5854 / .4042, epoch 24 of 40, where validation NDCG@10 was best. Personal Markov .5882 /
.4161, decayed Markov .5319 / .3807.
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
        data=DataConfig(folder="data/foursquare-nyc", batch_size=16),
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=100),
        training=TrainingConfig(num_epochs=40, evaluate_every=4, log_every=20),
        evaluation=EvaluationConfig(filter_seen=("none",)),
    )
