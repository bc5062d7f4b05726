"""A small generated world (synthetic data): a model trains on it in a minute or two.

    python -m launch.train --config=experiments/quick.py:recgrela --workdir=runs/quick/recgrela

The other models are `hytrec` and `sinkrec`, and their rivals `gated_deltanet`, `sasrec`, `hstu`,
`fuxi_linear`, `mamba2`, `lrurec`, `gru4rec` and `linrec`. `python -m launch.quickstart` trains
`recgrela` and `sasrec` and shows them in one table: README.md.
"""

from functools import partial

from linseqrec.config import Experiment, TrainingConfig
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
    "recgrela": ("RecGRELA", partial(RecGRELAConfig, num_layers=2)),
    "hytrec": ("HyTRec", HyTRecConfig),
    "sinkrec": ("SinkRec", SinkRecConfig),
    "gated_deltanet": ("Gated DeltaNet", partial(GatedDeltaNetConfig, num_layers=2)),
    "sasrec": ("SASRec", partial(SASRecConfig, dropout=0.1)),
    "hstu": ("HSTU", partial(HSTUConfig, dropout=0.1)),
    "fuxi_linear": ("FuXi-Linear", partial(FuXiLinearConfig, num_layers=2, dropout=0.1)),
    "mamba2": ("Mamba-2", Mamba2Config),
    "lrurec": ("LRURec", partial(LRURecConfig, dropout=0.1)),
    "gru4rec": ("GRU4Rec", partial(GRU4RecConfig, dropout=0.1)),
    "linrec": ("LinRec", partial(LinRecConfig, dropout=0.1)),
}


def get_config(name: str = "recgrela") -> Experiment:
    title, model = choose(MODELS, name)
    return Experiment(
        name=title,
        model=model(),
        data=DataConfig(world="quick", length=100, batch_size=16),
        optimizer=OptimizerConfig(
            learning_rate=4e-3, schedule="cosine", warmup_steps=50, clip_norm=1.0
        ),
        training=TrainingConfig(num_epochs=8, evaluate_every=1),
    )
