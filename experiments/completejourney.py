r"""A year of supermarket purchases, leave-one-out: 2,449 households, 28,164 products.

Histories are long (median 389 purchases, the longest 4,088), and 43 % of the purchases are repeats.
The purchases of a basket share their time. The file sorts them by product, and the command below
puts them in a random order. The next event is often another product of the same basket.
docs/data.md says where the log is from.

    python -m launch.prepare --input=logs/completejourney/transactions.parquet \
        --columns user=household_id,item=product_id,timestamp=transaction_timestamp \
        --user_core=5 --item_core=5 --tied_order=random --output=data/completejourney
    python -m launch.train --config=experiments/completejourney.py:gated_deltanet \
        --workdir=runs/completejourney/gated_deltanet

The best counting baseline here counts how often and how lately a household bought a product. With
`--config.own_items=false` a model has to learn this by itself.

The other models are `recgrela`, `hytrec`, `sinkrec`, `sasrec`, `hstu`, `fuxi_linear`, `mamba2`,
`lrurec`, `gru4rec` and `linrec`. With `--config.data.request_time=known` a model is told when the
next purchase is made, and so whether the basket goes on.

Results: results/real_logs.md.
"""

from functools import partial

from linseqrec.config import EvaluationConfig, Experiment, TrainingConfig
from linseqrec.config_fields import choose
from linseqrec.data.source import DataConfig
from linseqrec.models.fuxi_linear import FuXiLinearConfig
from linseqrec.models.gated_deltanet import GatedDeltaNetConfig
from linseqrec.models.gru4rec import GRU4RecConfig
from linseqrec.models.hstu import HSTUConfig
from linseqrec.models.hytrec import HyTRecConfig
from linseqrec.models.linrec import LinRecConfig
from linseqrec.models.lrurec import LRURecConfig
from linseqrec.models.mamba2 import Mamba2Config
from linseqrec.models.recgrela import RecGRELAConfig
from linseqrec.models.sasrec import SASRecConfig
from linseqrec.models.sinkrec import SinkRecConfig
from linseqrec.training.loss import LossConfig
from linseqrec.training.optimizer import OptimizerConfig

MODELS = {
    "recgrela": ("RecGRELA", RecGRELAConfig),
    # Chunks of 32 are faster on a CPU.
    "hytrec": ("HyTRec", partial(HyTRecConfig, chunk_size=32)),
    "sinkrec": ("SinkRec", partial(SinkRecConfig, chunk_size=32)),
    "gated_deltanet": (
        "Gated DeltaNet",
        partial(GatedDeltaNetConfig, num_layers=2, key_width=128, value_width=64, chunk_size=32),
    ),
    "sasrec": ("SASRec", partial(SASRecConfig, max_length=512)),
    "hstu": ("HSTU", partial(HSTUConfig, max_length=512)),
    "fuxi_linear": ("FuXi-Linear", partial(FuXiLinearConfig, max_length=512)),
    "mamba2": ("Mamba-2", Mamba2Config),
    # From their small released item vectors, the scores of own items diverge.
    "lrurec": ("LRURec", partial(LRURecConfig, table_deviation=0.125)),
    "gru4rec": ("GRU4Rec", GRU4RecConfig),
    "linrec": ("LinRec", partial(LinRecConfig, max_length=512, table_deviation=0.125)),
}


def get_config(name: str = "recgrela") -> Experiment:
    title, model = choose(MODELS, name)
    return Experiment(
        name=title,
        model=model(),
        own_items=True,
        data=DataConfig(folder="data/completejourney", length=512, batch_size=4),
        # The whole catalogue in every step would be most of the training time.
        loss=LossConfig(kind="sampled", negatives=2048, popularity_power=0.5),
        optimizer=OptimizerConfig(
            learning_rate=3e-3, schedule="cosine", final_fraction=0.05, warmup_steps=200
        ),
        training=TrainingConfig(num_epochs=4, evaluate_every=1, log_every=100),
        evaluation=EvaluationConfig(filter_seen=("none",)),
    )
