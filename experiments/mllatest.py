r"""MovieLens ml-latest-small, leave-one-out: 610 users, 9,724 films, 100,836 ratings.

With 610 targets the standard error of HR@10 is some .012.

    python -m launch.prepare --input=logs/ml-latest-small/ratings.csv \
        --output=data/ml-latest-small
    python -m launch.train --config=experiments/mllatest.py:recgrela \
        --workdir=runs/mllatest/recgrela

The other models are `hytrec`, `sinkrec`, `gated_deltanet`, `sasrec`, `hstu`, `fuxi_linear`,
`mamba2`, `lrurec`, `gru4rec` and `linrec`.

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
from linseqrec.training.optimizer import OptimizerConfig

MODELS = {
    # A log of a tenth of ML-1M's size overfits at the published rates of 0.1.
    "recgrela": ("RecGRELA", partial(RecGRELAConfig, dropout=0.3, drop_path=0.2)),
    "hytrec": ("HyTRec", partial(HyTRecConfig, dropout=0.3)),
    "sinkrec": ("SinkRec", partial(SinkRecConfig, dropout=0.3, memory_dropout=0.3)),
    "gated_deltanet": ("Gated DeltaNet", partial(GatedDeltaNetConfig, dropout=0.3)),
    "sasrec": ("SASRec", partial(SASRecConfig, dropout=0.3)),
    "hstu": ("HSTU", partial(HSTUConfig, dropout=0.3)),
    "fuxi_linear": ("FuXi-Linear", partial(FuXiLinearConfig, dropout=0.3)),
    "mamba2": ("Mamba-2", partial(Mamba2Config, dropout=0.3)),
    "lrurec": ("LRURec", partial(LRURecConfig, dropout=0.3)),
    "gru4rec": ("GRU4Rec", partial(GRU4RecConfig, dropout=0.3)),
    "linrec": ("LinRec", partial(LinRecConfig, dropout=0.3)),
}


def get_config(name: str = "recgrela") -> Experiment:
    title, model = choose(MODELS, name)
    return Experiment(
        name=title,
        model=model(),
        data=DataConfig(folder="data/ml-latest-small", batch_size=16),
        optimizer=OptimizerConfig(learning_rate=2e-3, schedule="late_decay", warmup_steps=100),
        training=TrainingConfig(num_epochs=40, evaluate_every=4, log_every=20),
        evaluation=EvaluationConfig(filter_seen=("all", "none")),
    )
