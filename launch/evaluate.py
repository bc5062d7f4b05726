r"""Evaluates checkpoints of runs: reproduces the metrics that the runs reported.

    python -m launch.evaluate --workdir=runs/quick --split=test --checkpoint=best
    python -m launch.evaluate --workdir=runs/a --workdir=runs/b --checkpoint=best,latest,1200 \
        --split=validation,test

Prints a row for each checkpoint and split. Evaluations that cannot be compared, for instance on
other data or under another filter, stand in different tables. Writes each evaluation to
`evaluations/SPLIT-STEP-FILTERS.json` (`test-1200-none-all.json`) in the run's workdir, and the
ranks, target by target, to the `.npz` beside it.

All devices share the work, whatever mesh a run was trained on. `--mesh_model` divides an item table
that is too large for one device, and `--mesh_sequence` rows that are too long for one.
"""

import dataclasses
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from absl import flags

from launch.flags import define_data
from launch.program import run_program
from linseqrec.evaluation.ranks import FilterSeen
from linseqrec.evaluation.result import EvaluationResult
from linseqrec.files import write_json
from linseqrec.runs.comparable import Conditions, comparable, shared_title
from linseqrec.runs.finished import run_names
from linseqrec.runs.results import evaluate_baselines
from linseqrec.runs.tables import results_table
from linseqrec.sharding import MeshConfig, make_mesh
from linseqrec.training import workdir
from linseqrec.training.checkpoint import Checkpoints
from linseqrec.training.run import Run, SplitName

_SPLITS = ("validation", "test")
_WORKDIRS = flags.DEFINE_multi_string("workdir", None, "Folder of a run.", required=True)
_DATA = define_data()
_SPLIT = flags.DEFINE_list("split", ["test"], "validation, test: which targets are predicted.")
_CHECKPOINTS = flags.DEFINE_list("checkpoint", ["best"], "`best`, `latest`, or steps.")
_FILTER_SEEN = flags.DEFINE_list(
    "filter_seen", [], "Seen items: none, all, or none,all for the two; unset: as in the run."
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "Users a batch at most; unset: as in the run.", 1
)
_MESH_DATA = flags.DEFINE_integer("mesh_data", -1, "Parts of a batch's rows; -1: all devices.")
_MESH_SEQUENCE = flags.DEFINE_integer("mesh_sequence", 1, "Parts of the slots of each row.")
_MESH_MODEL = flags.DEFINE_integer("mesh_model", 1, "Parts of the item table's rows.")
_BASELINES = flags.DEFINE_bool(
    "baselines", True, "Whether the tables hold the baselines (and a world's oracle)."
)
flags.register_validator(
    "split",
    lambda names: len(names) > 0 and set(names) <= set(_SPLITS),
    message=f"choose among {', '.join(_SPLITS)}",
)
flags.register_validator(
    "filter_seen",
    lambda names: set(names) <= set(typing.get_args(FilterSeen)),
    message="choose none, all, or none,all for the two",
)
flags.register_validator("checkpoint", bool, message="name at least one checkpoint")


@dataclasses.dataclass
class _Table:
    """Evaluations that can be compared.

    Attributes:
      conditions: What their metrics depend on, besides the model.
      title: The data, the split, the targets and the filters.
      baselines: Summaries by name.
      rows: The runs' summaries by label.
      written: Lines on the files that were written.
    """

    conditions: Conditions
    title: str
    baselines: dict[str, Any]
    rows: dict[str, Any] = dataclasses.field(default_factory=dict)
    written: list[str] = dataclasses.field(default_factory=list)


def main(_: list[str]) -> None:
    folders = list(dict.fromkeys(Path(folder) for folder in _WORKDIRS.value))
    tables: list[_Table] = []
    for folder, name in zip(folders, run_names(folders), strict=True):
        run = _run(folder)
        evaluations = list(_evaluate(run, folder))
        several = len({step for step, _, _ in evaluations}) > 1
        for step, split, result in evaluations:
            table = _table(tables, run, split, result)
            table.rows[f"{name}, step {step}" if several else name] = result.summary()
            filters = "-".join(result.protocol["filter_seen"])
            stem = folder / "evaluations" / f"{split}-{step}-{filters}"
            result.save(stem.with_suffix(".npz"))
            summaries = {run.experiment.name: result.summary()} | table.baselines
            write_json(stem.with_suffix(".json"), {"step": step} | summaries)
            table.written.append(f"checkpoint {step}; written to {stem}.json and .npz")
    for table in tables:
        if len(tables) > 1:
            print(f"{table.title}\n")
        print(results_table(table.rows | table.baselines))
        print("\n".join(table.written), end="\n\n" if len(tables) > 1 else "\n")


def _run(folder: Path) -> Run:
    experiment = workdir.read_experiment(folder)
    evaluation = dataclasses.replace(
        experiment.evaluation,
        filter_seen=cast(tuple[FilterSeen, ...], tuple(dict.fromkeys(_FILTER_SEEN.value)))
        or experiment.evaluation.filter_seen,
        batch_size=_BATCH_SIZE.value or experiment.evaluation.batch_size,
    )
    return Run.of(
        dataclasses.replace(experiment, evaluation=evaluation),
        workdir.load_data(folder, _DATA.value),
        mesh=make_mesh(MeshConfig(_MESH_DATA.value, _MESH_MODEL.value, _MESH_SEQUENCE.value)),
        trains=False,
    )


def _evaluate(run: Run, folder: Path) -> Iterator[tuple[int, SplitName, EvaluationResult]]:
    """Evaluates each requested step and split once: "best" and "latest" may be one step."""
    folder = folder / "checkpoints"
    with Checkpoints(folder, read_only=True, shapes=run.step.shapes) as checkpoints:
        for step in dict.fromkeys(map(checkpoints.resolve, _CHECKPOINTS.value)):
            params = checkpoints.restore_params(step, run.model.initial_params)
            for split in dict.fromkeys(cast(list[SplitName], _SPLIT.value)):
                yield step, split, run.evaluate(params, split)


def _table(tables: list[_Table], run: Run, split: SplitName, result: EvaluationResult) -> _Table:
    """The table of comparable evaluations; appends a new one if there is none."""
    conditions = Conditions.of_run(run, result.protocol)
    for table in tables:
        if comparable(table.conditions, conditions):
            return table
    filters = ",".join(result.protocol["filter_seen"])
    title = shared_title([run.experiment], run.source.split.name)
    title += f"; {split} targets; filter_seen={filters}"
    evaluated = evaluate_baselines(run, split) if _BASELINES.value else {}
    baselines = {name: each.summary() for name, each in evaluated.items()}
    tables.append(_Table(conditions, title, baselines))
    return tables[-1]


if __name__ == "__main__":
    run_program(main)
