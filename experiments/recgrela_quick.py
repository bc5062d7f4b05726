"""RecGRELA on a small generated world: the quick start's experiment.

Run it by:

    python -m launch.train --config=experiments/recgrela_quick.py --workdir=runs/recgrela_quick
"""

from linseqrec.config import Experiment, TrainingConfig
from linseqrec.data.source import DataConfig
from linseqrec.models.recgrela import RecGRELAConfig
from linseqrec.training.optimizer import OptimizerConfig


def get_config() -> Experiment:
    return Experiment(
        name="RecGRELA",
        model=RecGRELAConfig(num_layers=2),
        data=DataConfig(world="quick", length=100, batch_size=16),
        optimizer=OptimizerConfig(
            learning_rate=4e-3, schedule="cosine", warmup_steps=50, clip_norm=1.0
        ),
        training=TrainingConfig(num_epochs=8, evaluate_every=1),
    )
