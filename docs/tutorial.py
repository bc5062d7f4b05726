# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Tutorial: from a log to recommendations
#
# This notebook writes a small log, prepares it, trains Gated DeltaNet on it, recommends items to
# two users, and draws what the model learned. It takes about a minute on two CPU cores.
#
# The notebook is the script `docs/tutorial.py`. VS Code and PyCharm open it as a notebook;
# `jupytext --to ipynb docs/tutorial.py` writes the `.ipynb` file. The site offers the executed
# notebook: {nb-download}`tutorial.ipynb`.

# %%
import csv
import json
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from absl import logging

from linseqrec.config import Experiment, TrainingConfig
from linseqrec.data.dataset import Dataset
from linseqrec.data.histories import find_users, gather_histories
from linseqrec.data.prepare import prepare
from linseqrec.data.source import DataConfig
from linseqrec.data.worlds import generate, resized, world_config
from linseqrec.models.gated_deltanet import GatedDeltaNetConfig
from linseqrec.serving.recommender import Recommender
from linseqrec.training.loop import train
from linseqrec.training.optimizer import OptimizerConfig
from linseqrec.training.run import Run

folder = Path(tempfile.mkdtemp())
logging.set_verbosity(logging.ERROR)  # Orbax warns that a checkpoint is opened read-only

# %% [markdown]
# ## 1. A log
#
# A log has one event a line: who, what, when. Take your own, or this one of 400 shoppers, whose
# habits and tastes `linseqrec.data.worlds` generates.

# %%
world = generate(resized(world_config("quick"), 400, 60.0, 300), 0)
with (folder / "clicks.csv").open("w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["visitor", "sku", "at"])
    for user, first in enumerate(world.dataset.offsets[:-1]):
        for event in range(first, world.dataset.offsets[user + 1]):
            item, time = world.dataset.items[event], world.dataset.timestamps[event]
            writer.writerow([f"u{user}", f"sku-{item}", time])

print("".join((folder / "clicks.csv").open().readlines()[:4]))

# %% [markdown]
# ## 2. Prepare it
#
# `prepare` checks the log, numbers users and items, sorts the events, and writes a dataset
# folder. It drops only what you ask it to drop: here, users and items with fewer than five
# events.
#
# On the command line: `python -m launch.prepare --input=clicks.csv --output=clicks --columns
# user=visitor,item=sku,timestamp=at --user_core=5 --item_core=5`.

# %%
dataset = prepare(
    folder / "clicks.csv",
    folder / "clicks",
    columns={"user": "visitor", "item": "sku", "timestamp": "at"},
    user_core=5,
    item_core=5,
)
print(f"{dataset.num_users} users, {dataset.num_items} items, {dataset.num_events:,} events")

# %% [markdown]
# ## 3. Train a model
#
# An experiment says everything that a run depends on. The last event of each user is the test
# target, the second-last the validation target. The run leaves its configuration, metrics and
# checkpoints in its folder, and the same call goes on where it stopped.
#
# On the command line: `python -m launch.train --config=experiments/own_log.py:gated_deltanet
# --config.data.folder=clicks --workdir=run`.

# %%
experiment = Experiment(
    name="Gated DeltaNet",
    model=GatedDeltaNetConfig(width=32, num_layers=2),
    data=DataConfig(folder=str(folder / "clicks"), length=100, batch_size=8),
    optimizer=OptimizerConfig(
        learning_rate=4e-3, schedule="cosine", warmup_steps=20, clip_norm=1.0
    ),
    training=TrainingConfig(num_epochs=10, evaluate_every=2, log_every=10),
)
run = Run.of(experiment)
state = train(run, folder / "run")
step = int(state.step)

# %% [markdown]
# ## 4. Test it
#
# Every target is ranked among all items. A baseline is any function from users and positions to
# scores; this one scores an item by its number of training events.

# %%
results = {
    "Popularity": run.evaluator("test").run_scores(
        lambda users, positions: np.broadcast_to(
            run.item_counts.astype(float), (len(users), len(run.item_counts))
        )
    ),
    "Gated DeltaNet": run.evaluate(state.variables, "test"),
}
for name, result in results.items():
    error = result.standard_errors["none"]["NDCG@10"]
    print(f"{name:15} NDCG@10 {result.metrics['NDCG@10']:.3f} ± {error:.3f}")

# %% [markdown]
# ## 5. Recommend
#
# A served model reads each user's history once, then one event at a time. Its state has one size,
# however long the history is.

# %%
dataset = Dataset.open(folder / "clicks")
recommender = Recommender.from_workdir(folder / "run")
users = find_users(["u1", "u2"], dataset.user_ids())
states = recommender.start(gather_histories(dataset, users, dataset.offsets[users + 1], None))
before, _ = recommender.recommend(states, 5)

# User u1 now takes the item that stands first in the list; u2 does nothing (item 0).
now = recommender.seconds(dataset.timestamps[dataset.offsets[users + 1] - 1] + 60)
states = recommender.update(states, np.array([before[0, 0], 0]), now)
after, _ = recommender.recommend(states, 5)

names = dataset.item_ids()
for row, user in enumerate(["u1", "u2"]):
    print(user, "before", *names[before[row]])
    print(user, "after ", *names[after[row]])

# %% [markdown]
# ## 6. Draw it
#
# Left: validation by epoch, from the run's `metrics.jsonl`. Right: the metric by the length of
# the history, with one standard error.

# %%
records = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").open()]
curve = [
    (record["epoch"], record["validation/none/NDCG@10"])
    for record in records
    if "validation/none/NDCG@10" in record
]
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
left.plot(*zip(*curve, strict=True), marker="o")
left.set(xlabel="epoch", ylabel="NDCG@10, validation", ylim=(0, None))

edges = [0, 40, 60, 100, np.inf]
for name, result in results.items():
    ranks = result.ranks["none"]
    gains = np.where(ranks <= 10, 1 / np.log2(1 + ranks), 0)
    groups = [
        gains[(first <= result.lengths) & (result.lengths < end)]
        for first, end in zip(edges[:-1], edges[1:], strict=True)
    ]
    means = [group.mean() for group in groups]
    errors = [group.std() / len(group) ** 0.5 for group in groups]
    right.errorbar(["< 40", "40-59", "60-99", "100 +"], means, errors, marker="o", label=name)
right.set(xlabel="events before the target", ylabel="NDCG@10, test", ylim=(0, None))
right.legend()
plt.show()

# %% [markdown]
# ## Next
#
# - [Train on your own log](train_on_your_log.md): splits, rows, and what to change first.
# - [Models](models.md): the other models and their options.
# - [Sweep and compare](sweep_and_compare.md): seeds, tables and what a difference is worth.
