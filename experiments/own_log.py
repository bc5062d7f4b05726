"""A log of your own, of whatever size: prepare it, name a model, and train.

    python -m launch.prepare --input=clicks.csv.gz --output=data/own_log
    python -m launch.train --config=experiments/own_log.py:recgrela --workdir=runs/own_log

The other models are `hytrec`, `sinkrec`, `gated_deltanet`, `sasrec`, `hstu`, `fuxi_linear`,
`mamba2`, `lrurec`, `gru4rec` and `linrec`. HyTRec, SinkRec, HSTU and FuXi-Linear read the times
between events. `--config.data.folder=FOLDER` names another folder. Training stops by itself, ten
validations after the best one. Look at the card that `launch.prepare` prints:

- A small log (some 100,000 events or fewer) overfits: `--config.model.dropout=0.3`, and for SinkRec
  `--config.model.memory_dropout=0.3`, too.
- Half of the users have far more events than a row holds: `--config.data.length=400`. SASRec, HSTU,
  FuXi-Linear, LinRec, and RecGRELA with learned positions also need
  `--config.model.max_length=400`.
- Some users have thousands of events: `--config.data.length=0` reads whole histories, at little
  cost in a linear model. Rows are longer then: make `--config.data.batch_size` smaller.
- No user repeats an item: select the checkpoint by the metrics with seen items filtered,
  `--config.evaluation.filter_seen=all,none`.

The table that fits the log is printed first: not filtered if more than 3 % of the targets are items
that their user has seen, otherwise with seen items filtered.
"""

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
    "hytrec": ("HyTRec", HyTRecConfig),
    "sinkrec": ("SinkRec", SinkRecConfig),
    "gated_deltanet": ("Gated DeltaNet", GatedDeltaNetConfig),
    "sasrec": ("SASRec", SASRecConfig),
    "hstu": ("HSTU", HSTUConfig),
    "fuxi_linear": ("FuXi-Linear", FuXiLinearConfig),
    "mamba2": ("Mamba-2", Mamba2Config),
    "lrurec": ("LRURec", LRURecConfig),
    "gru4rec": ("GRU4Rec", GRU4RecConfig),
    "linrec": ("LinRec", LinRecConfig),
}


def get_config(name: str = "recgrela") -> Experiment:
    title, model = choose(MODELS, name)
    return Experiment(
        name=title,
        model=model(),
        data=DataConfig(folder="data/own_log", batch_size=16),
        # Beyond 50,000 items it draws negatives: a step's cost no longer grows with the catalogue.
        loss=LossConfig(kind="auto", negatives=1024),
        # An epoch is at least one step, so this warm-up is shorter than any log's run.
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=20, clip_norm=1.0),
        training=TrainingConfig(num_epochs=50, patience=10, log_every=20),
        evaluation=EvaluationConfig(filter_seen=("none", "all")),
    )
