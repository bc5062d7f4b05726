"""The generated world `drift` (synthetic data): tastes drift while a user is away.

Only the gap between two events tells how much of the past still counts: this world judges decay
over elapsed time.

    python -m launch.train --config=experiments/drift.py:hytrec --workdir=runs/drift/hytrec

The other models are `recgrela`, `sinkrec`, `gated_deltanet`, `sasrec`, `hstu`, `fuxi_linear`,
`mamba2`, `lrurec`, `gru4rec` and `linrec`. HyTRec's controls are `--config.model.time=shuffled`,
`positions` or `none`, `--config.model.branches=short`, and `--config.model.branches=long
--config.model.short_events=0`.

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
    "recgrela": ("RecGRELA", RecGRELAConfig),
    "hytrec": ("HyTRec", HyTRecConfig),
    "sinkrec": ("SinkRec", SinkRecConfig),
    "gated_deltanet": ("Gated DeltaNet", GatedDeltaNetConfig),
    "sasrec": ("SASRec", partial(SASRecConfig, max_length=400)),
    "hstu": ("HSTU", partial(HSTUConfig, max_length=400)),
    "fuxi_linear": ("FuXi-Linear", partial(FuXiLinearConfig, max_length=400)),
    "mamba2": ("Mamba-2", Mamba2Config),
    "lrurec": ("LRURec", LRURecConfig),
    "gru4rec": ("GRU4Rec", GRU4RecConfig),
    "linrec": ("LinRec", partial(LinRecConfig, max_length=400)),
}


def get_config(name: str = "recgrela") -> Experiment:
    title, model = choose(MODELS, name)
    return Experiment(
        name=title,
        model=model(),
        data=DataConfig(world="drift", length=400, batch_size=8),
        optimizer=OptimizerConfig(
            learning_rate=2e-3, schedule="cosine", final_fraction=0.05, warmup_steps=100
        ),
        training=TrainingConfig(num_epochs=8, evaluate_every=1, log_every=50),
        evaluation=EvaluationConfig(filter_seen=("none",)),
    )
