r"""The generated world `ultra_long` (synthetic data): 1,500 users of some 1,500 events each.

A user has fifty habits among a thousand items. Most of them come once in a thousand events or less:
a model that sees the last few hundred events has not seen them.

    python -m launch.train --config=experiments/ultra_long.py:hytrec \
        --workdir=runs/ultra_long/hytrec

The other models are `recgrela`, `sinkrec`, `gated_deltanet`, `sasrec`, `hstu`, `fuxi_linear`,
`mamba2`, `lrurec`, `gru4rec` and `linrec`. HyTRec's controls are `--config.model.time=shuffled`,
`positions` or `none`, `--config.model.branches=short`, and `--config.model.branches=long
--config.model.short_events=0`.

Models whose heads start as lookups learn to recall with `--config.data.renamed=0.7
--config.training.num_epochs=6`.

Results: results/worlds.md and results/hytrec.md.
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
    "recgrela": ("RecGRELA", partial(RecGRELAConfig, dropout=0.0)),
    # Chunks of 32 are faster on a CPU.
    "hytrec": ("HyTRec", partial(HyTRecConfig, dropout=0.0, chunk_size=32)),
    "sinkrec": ("SinkRec", partial(SinkRecConfig, dropout=0.0, chunk_size=32)),
    "gated_deltanet": ("Gated DeltaNet", partial(GatedDeltaNetConfig, dropout=0.0, chunk_size=32)),
    "sasrec": ("SASRec", partial(SASRecConfig, max_length=1_536, dropout=0.0)),
    "hstu": ("HSTU", partial(HSTUConfig, max_length=1_536, dropout=0.0)),
    "fuxi_linear": ("FuXi-Linear", partial(FuXiLinearConfig, max_length=1_536, dropout=0.0)),
    "mamba2": ("Mamba-2", partial(Mamba2Config, dropout=0.0)),
    "lrurec": ("LRURec", partial(LRURecConfig, dropout=0.0)),
    "gru4rec": ("GRU4Rec", partial(GRU4RecConfig, dropout=0.0)),
    "linrec": ("LinRec", partial(LinRecConfig, max_length=1_536, dropout=0.0)),
}


def get_config(name: str = "recgrela") -> Experiment:
    title, model = choose(MODELS, name)
    return Experiment(
        name=title,
        model=model(),
        data=DataConfig(
            world="ultra_long",
            world_users=1_500,
            world_length=1_500,
            world_items=1_000,
            length=1_536,
            batch_size=1,
        ),
        optimizer=OptimizerConfig(
            learning_rate=5e-3, schedule="cosine", final_fraction=0.05, warmup_steps=100
        ),
        training=TrainingConfig(num_epochs=2, evaluate_every=1, log_every=200),
        evaluation=EvaluationConfig(filter_seen=("none",)),
    )
