"""Workdirs of finished runs with ranks made up."""

import dataclasses
import json

import numpy as np
import pytest

from linseqrec.config import EvaluationConfig, Experiment
from linseqrec.data.source import DataConfig
from linseqrec.evaluation.metrics import BUCKET_EDGES, bucket_metrics, rank_metrics
from linseqrec.evaluation.result import EvaluationResult
from linseqrec.files import write_json
from linseqrec.models.sasrec import SASRecConfig
from linseqrec.runs.results import write_best_baseline
from linseqrec.training import workdir
from tests.training import conftest as training

# For runs that are really trained.
experiment, make_run = training.experiment, training.make_run
source, steps = training.source, training.steps

TARGETS = 200
EXPERIMENT = Experiment(
    name="SASRec",
    model=SASRecConfig(),
    data=DataConfig(length=50),
    evaluation=EvaluationConfig(filter_seen=("none", "all")),
)


def changed(experiment=EXPERIMENT, **parts):
    """The experiment with some fields changed: changed(training={"seed": 1}, note="x")."""
    return dataclasses.replace(
        experiment,
        **{
            part: dataclasses.replace(getattr(experiment, part), **fields)
            if isinstance(fields, dict)
            else fields
            for part, fields in parts.items()
        },
    )


def evaluation(ranks, lengths, targets, **protocol):
    """A test result of the ranks {filter: [M]}; two targets per user."""
    metrics = {name: rank_metrics(values) for name, values in ranks.items()}
    return EvaluationResult(
        protocol={
            "split": "test",
            "filter_seen": list(ranks),
            "ties": "mean",
            "candidates": "all items",
            "max_length": 50,
            "num_items": 1000,
            "targets": len(lengths),
            "users": len(lengths) // 2,
            "bucket_edges": [0, 50, 100, 200, 500],
        }
        | protocol,
        users=np.arange(len(lengths)) // 2,
        targets=targets,
        lengths=lengths,
        target_seen=np.zeros(len(lengths), bool),
        ranks=ranks,
        metrics_by_filter={name: means for name, (means, _) in metrics.items()},
        standard_errors={name: errors for name, (_, errors) in metrics.items()},
        buckets={
            name: bucket_metrics(values, lengths, protocol.get("bucket_edges", BUCKET_EDGES))
            for name, values in ranks.items()
        },
    )


@pytest.fixture
def save_run(tmp_path):
    """Writes a finished run: save_run("a/seed=0", experiment, ranks); returns its folder.

    Without ranks they are drawn from the experiment's seed. The ranks of the selected state in
    validation are those of the test split, unless they are given. Logged validation metrics are
    0.1 (i + seed) after i epochs.
    """

    def make(
        name,
        experiment=EXPERIMENT,
        ranks=None,
        *,
        protocol=None,
        split=None,
        digest="0",
        first=1,
        counting=None,
        validation=None,
    ):
        folder = tmp_path / name
        seed = experiment.training.seed
        rng = np.random.default_rng(seed)
        filters = experiment.evaluation.filter_seen
        if ranks is None:
            ranks = {which: rng.integers(1, 30, TARGETS).astype(float) for which in filters}
        fixed = np.random.default_rng(9)
        lengths = fixed.integers(1, 300, TARGETS)
        targets = fixed.integers(first, 1000, TARGETS)
        result = evaluation(ranks, lengths, targets, **(protocol or {}))
        validated = evaluation(validation or ranks, lengths, targets, **(protocol or {}))
        baseline = evaluation(
            {which: np.full(TARGETS, 4.0) for which in ranks}, lengths, targets, **(protocol or {})
        )
        arrays = {name: digest + name for name in ("items", "timestamps", "offsets")}
        card = {"sha256": arrays | {"source": name}, "arrays": dict.fromkeys(arrays)}
        workdir.claim(folder, experiment, card)
        result.save(folder / "ranks" / "test.npz")
        # Old runs hold no ranks of baselines.
        if counting is not None:
            write_best_baseline(
                folder, {name: evaluation(own, lengths, targets) for name, own in counting.items()}
            )
        data = "generated world 'quick' (synthetic data); split leave_one_out"
        note = f"; {experiment.note}" if experiment.note else ""
        summaries = {experiment.name: result.summary(), "Markov": baseline.summary()}
        write_json(
            folder / "results.json",
            {
                "name": experiment.name,
                "title": f"{experiment.name} on {data}{note}",
                "epoch": 3.0 + experiment.training.seed,
                "split": {"split": "leave_one_out"} | (split or {}),
                "validation": {experiment.name: validated.summary()},
                "test": summaries,
            },
        )
        records = [
            {"step": 10 * i, "epoch": float(i), "train/loss": 7.0 - i}
            | {
                f"validation/{which}/{metric}": 0.1 * (i + seed)
                for which in filters
                for metric in ("NDCG@10", "HR@10")
            }
            for i in range(1, 4 + seed)
        ]
        text = "".join(json.dumps(record) + "\n" for record in records)
        (folder / "metrics.jsonl").write_text(text)
        return folder

    return make
