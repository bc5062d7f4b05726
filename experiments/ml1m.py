"""MovieLens-1M, leave-one-out: 6,040 users, 3,416 films, 999,611 ratings.

20 % of the timestamps are imputed, between genuine neighbours; the test targets have genuine ones.
All models but HyTRec, SinkRec, HSTU and FuXi-Linear read the order alone: they also train on the
public log without timestamps (docs/data.md), with `--config.data.folder=data/ml-1m --config.note=`.

    python -m launch.prepare --input=logs/ml-1m/ratings.tsv.gz --output=data/ml-1m-times
    python -m launch.train --config=experiments/ml1m.py:recgrela --workdir=runs/ml1m/recgrela

The other models are `hytrec`, `sinkrec`, `gated_deltanet`, `sasrec`, `hstu`, `fuxi_linear`,
`mamba2`, `lrurec`, `gru4rec` and `linrec`. With `--config.data.request_time=known` a model is told
when each prediction is asked for. That is another task, whose results stand in tables of their own.

`recgrela_released` is RecGRELA as released: bidirectional, and one target per row. Its epoch has
981,491 rows of 200 slots, which is work for a GPU: a step takes some 40 s of a CPU core. The batch
of 2,048 rows is the published one, and accumulation limits its memory.

Results: results/real_logs.md.
"""

from functools import partial
from typing import Any

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
    "recgrela_released": ("RecGRELA (released mode)", partial(RecGRELAConfig, causal=False)),
    "hytrec": ("HyTRec", HyTRecConfig),
    "sinkrec": ("SinkRec", SinkRecConfig),
    # Chunks of 32 are faster on a CPU.
    "gated_deltanet": ("Gated DeltaNet", partial(GatedDeltaNetConfig, dropout=0.2, chunk_size=32)),
    "sasrec": ("SASRec", partial(SASRecConfig, dropout=0.1)),
    "hstu": ("HSTU", partial(HSTUConfig, dropout=0.1)),
    "fuxi_linear": ("FuXi-Linear", partial(FuXiLinearConfig, dropout=0.1)),
    "mamba2": ("Mamba-2", partial(Mamba2Config, dropout=0.1)),
    "lrurec": ("LRURec", partial(LRURecConfig, dropout=0.1)),
    "gru4rec": ("GRU4Rec", partial(GRU4RecConfig, dropout=0.1)),
    "linrec": ("LinRec", partial(LinRecConfig, dropout=0.1)),
}
RECIPE: dict[str, Any] = {
    # Small batches, for more updates per epoch.
    "data": DataConfig(folder="data/ml-1m-times", batch_size=4),
    "optimizer": OptimizerConfig(
        learning_rate=2e-3, schedule="cosine", final_fraction=0.05, warmup_steps=300
    ),
    "training": TrainingConfig(num_epochs=16, evaluate_every=2),
    "evaluation": EvaluationConfig(filter_seen=("all", "none")),
}
RELEASED: dict[str, Any] = {
    "data": DataConfig(folder="data/ml-1m-times", plan="prefixes", batch_size=2048),
    "training": TrainingConfig(
        num_epochs=300, evaluate_every=1, patience=20, accumulation_steps=32, log_every=1
    ),
    "evaluation": EvaluationConfig(filter_seen=("none", "all")),
}


def get_config(name: str = "recgrela") -> Experiment:
    title, model = choose(MODELS, name)
    recipe = RELEASED if name == "recgrela_released" else RECIPE
    return Experiment(name=title, note="20 % of timestamps imputed", model=model(), **recipe)
