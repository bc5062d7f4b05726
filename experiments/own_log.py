r"""A log of your own, of whatever size: prepare it, choose the model below, and train.

    python -m launch.prepare --input=clicks.csv.gz --output=data/own_log
    python -m launch.train --config=experiments/own_log.py --workdir=runs/own_log

Another folder is `--config.data.folder=...`. Training stops by itself, ten validations after the
best one. What to look at first, by what the log's card says:

- a small log (some 100,000 events or fewer) overfits: `--config.model.dropout=0.3`;
- half of the users have far more events than are read: `--config.data.length=400`, which SASRec
  (and RecGRELA with learned positions) is told as well, `--config.model.max_length=400`;
- some users have thousands of events, and the model is a linear one: `--config.data.length=0` packs
  and reads whole histories; make `--config.data.batch_size` smaller, since rows are longer;
- no user repeats an item: the metrics with seen items filtered are the ones to select by,
  `--config.evaluation.filter_seen=all --config.evaluation.filter_seen=none`.
"""

from linseqrec.config import EvaluationConfig, Experiment, TrainingConfig
from linseqrec.data.source import DataConfig
from linseqrec.models.recgrela import RecGRELAConfig
from linseqrec.training.optimizer import OptimizerConfig


def get_config() -> Experiment:
    # To edit, with its import: GatedDeltaNetConfig(), HyTRecConfig(), SinkRecConfig() or
    # SASRecConfig(), of linseqrec.models.gated_deltanet, hytrec, sinkrec and sasrec. HyTRec and
    # SinkRec read the times between events.
    model = RecGRELAConfig()
    return Experiment(
        name=type(model).__name__.removesuffix("Config"),
        model=model,
        data=DataConfig(folder="data/own_log", batch_size=16),
        # At the least an epoch is one step, and so the warm-up is shorter than any log's run.
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=20, clip_norm=1.0),
        training=TrainingConfig(num_epochs=50, patience=10, log_every=20),
        evaluation=EvaluationConfig(filter_seen=("none", "all")),
    )
