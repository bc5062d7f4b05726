r"""The generated world `repetition` (synthetic data): 2,000 users, whose habits recur.

Over half of the events are habits: a model has to recall what followed an item before.

    python -m launch.train --config=experiments/repetition.py:gated_deltanet \
        --workdir=runs/repetition/gated_deltanet

The other models are `recgrela` (its heads start as lookups here), `hytrec`, `sinkrec`, `sasrec`,
`hstu`, `fuxi_linear`, `mamba2`, `lrurec`, `gru4rec` and `linrec`.

Results: results/worlds.md.
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
    # One head of the full width finds single events best (`RecGRELAConfig.lookup`).
    "recgrela": (
        "RecGRELA",
        partial(RecGRELAConfig, heads=1, lookup=True, positions="none", dropout=0.0),
    ),
    # Chunks of 32 are faster on a CPU.
    "hytrec": (
        "HyTRec",
        partial(
            HyTRecConfig,
            width=80,
            short_layers=1,
            num_layers=2,
            ratio="1:0",
            attention_convolution=True,
            key_width=128,
            value_width=80,
            feed_forward=2,
            dropout=0.1,
            chunk_size=32,
        ),
    ),
    "sinkrec": ("SinkRec", partial(SinkRecConfig, dropout=0.0, chunk_size=32)),
    "gated_deltanet": (
        "Gated DeltaNet",
        partial(
            GatedDeltaNetConfig,
            width=80,
            num_layers=2,
            key_width=128,
            value_width=80,
            feed_forward=2,
            dropout=0.1,
            chunk_size=32,
        ),
    ),
    "sasrec": ("SASRec", partial(SASRecConfig, max_length=400, dropout=0.0)),
    "hstu": ("HSTU", partial(HSTUConfig, max_length=400, dropout=0.0)),
    "fuxi_linear": ("FuXi-Linear", partial(FuXiLinearConfig, max_length=400, dropout=0.0)),
    "mamba2": ("Mamba-2", partial(Mamba2Config, dropout=0.0)),
    "lrurec": ("LRURec", partial(LRURecConfig, dropout=0.0)),
    "gru4rec": ("GRU4Rec", partial(GRU4RecConfig, dropout=0.0)),
    "linrec": ("LinRec", partial(LinRecConfig, max_length=400, dropout=0.0)),
}


def get_config(name: str = "recgrela") -> Experiment:
    title, model = choose(MODELS, name)
    return Experiment(
        name=title,
        model=model(),
        # Small batches, for more updates per epoch.
        data=DataConfig(world="repetition", length=400, batch_size=2),
        optimizer=OptimizerConfig(
            learning_rate=5e-3, schedule="cosine", final_fraction=0.05, warmup_steps=100
        ),
        training=TrainingConfig(num_epochs=12, evaluate_every=1, log_every=200),
        evaluation=EvaluationConfig(filter_seen=("none",)),
    )
