r"""RecGRELA as released (`causal=False`) on MovieLens-1M: a row for every training event.

An epoch is 981,491 rows of 200 slots, each with one target: for a GPU. On one CPU core a step
takes about 40 s, and an epoch over five hours. The published run takes batches of 2,048 rows;
accumulation keeps the memory of one step down.

Run it by:

    python -m launch.prepare --input=logs/ml-1m/ml-1m.txt.gz --output=data/ml-1m
    python -m launch.train --config=experiments/recgrela_released_ml1m.py \
        --workdir=runs/recgrela_released_ml1m
"""

from linseqrec.config import EvaluationConfig, Experiment, TrainingConfig
from linseqrec.data.source import DataConfig
from linseqrec.models.recgrela import RecGRELAConfig


def get_config() -> Experiment:
    return Experiment(
        name="RecGRELA (released mode)",
        model=RecGRELAConfig(causal=False),
        data=DataConfig(folder="data/ml-1m", plan="prefixes", batch_size=2048),
        training=TrainingConfig(
            num_epochs=300, evaluate_every=1, patience=20, accumulation_steps=32, log_every=1
        ),
        evaluation=EvaluationConfig(filter_seen=("none", "all")),
    )
