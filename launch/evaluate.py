"""Evaluates a checkpoint of a run: reproduces the metrics that the run reported.

    python -m launch.evaluate --workdir=runs/quick --split=test --checkpoint=best

Writes `evaluations/SPLIT-STEP.json` and the per-target ranks beside it, in the workdir.
"""

import dataclasses
from pathlib import Path
from typing import cast

from absl import flags

from launch.program import run_program
from linseqrec.evaluation.ranks import FilterSeen
from linseqrec.evaluation.table import results_table
from linseqrec.training import workdir
from linseqrec.training.checkpoint import Checkpoints
from linseqrec.training.results import references
from linseqrec.training.run import Run, SplitName

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
_SPLIT = flags.DEFINE_enum("split", "test", ["validation", "test"], "Which targets are predicted.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "best", "`best`, `latest`, or a step.")
_FILTER_SEEN = flags.DEFINE_list("filter_seen", [], "none, all or both; unset: as in the run.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Users a batch; unset: as in the run.", 1)
_FLOORS = flags.DEFINE_bool("floors", True, "Whether floors (and a world's oracle) are shown too.")


def main(_: list[str]) -> None:
    folder, split = Path(_WORKDIR.value), cast(SplitName, _SPLIT.value)
    experiment = workdir.read_experiment(folder)
    evaluation = dataclasses.replace(
        experiment.evaluation,
        filter_seen=cast(tuple[FilterSeen, ...], tuple(_FILTER_SEEN.value))
        or experiment.evaluation.filter_seen,
        batch_size=_BATCH_SIZE.value or experiment.evaluation.batch_size,
    )
    run = Run.of(dataclasses.replace(experiment, evaluation=evaluation))
    workdir.check_data(folder, run.source.dataset.card)

    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        step = checkpoints.resolve(_CHECKPOINT.value)
        state = checkpoints.restore(step, run.initial_state())
    result = run.evaluate(state.params, split)
    rows = {experiment.name: result.summary()}
    if _FLOORS.value:
        rows |= {name: floor.summary() for name, floor in references(run, split).items()}
    print(results_table(rows))

    name = f"{split}-{step}"
    result.save(folder / "evaluations" / f"{name}.npz")
    workdir.write_json(folder / "evaluations" / f"{name}.json", {"step": step} | rows)
    print(f"checkpoint {step}; written to {folder / 'evaluations' / name}.json and .npz")


if __name__ == "__main__":
    run_program(main)
