r"""Gated DeltaNet on a year of supermarket purchases, completejourney, leave-one-out.

Histories are long (median 389 purchases, the longest 4,088), people buy again what they bought
(43 % of purchases), and the catalogue is large (28,164 products). Purchases of one basket share
their time and have no order, so that the next event is often another product of the same basket.
docs/data.md says where the log is from. Run it by:

    python -m launch.prepare --input=logs/completejourney/transactions.parquet \
        --columns user=household_id,item=product_id,timestamp=transaction_timestamp \
        --user_core=5 --item_core=5 --output=data/completejourney
    python -m launch.train --config=experiments/gated_deltanet_completejourney.py \
        --workdir=runs/gated_deltanet_completejourney

With `--config.data.request_time=known` the model is told when the next purchase is made.
"""

from linseqrec.config import EvaluationConfig, Experiment, TrainingConfig
from linseqrec.data.source import DataConfig
from linseqrec.models.gated_deltanet import GatedDeltaNetConfig
from linseqrec.training.loss import LossConfig
from linseqrec.training.optimizer import OptimizerConfig


def get_config() -> Experiment:
    return Experiment(
        name="Gated DeltaNet",
        model=GatedDeltaNetConfig(num_layers=2, key_width=128, value_width=64, chunk_size=32),
        data=DataConfig(folder="data/completejourney", length=512, batch_size=4),
        # The whole catalogue in every step would be most of the training time.
        loss=LossConfig(kind="sampled", negatives=2048, popularity_power=0.5),
        optimizer=OptimizerConfig(
            learning_rate=3e-3, schedule="cosine", final_fraction=0.05, warmup_steps=200
        ),
        training=TrainingConfig(num_epochs=6, evaluate_every=1, log_every=100),
        evaluation=EvaluationConfig(filter_seen=("none",)),
    )
