r"""Evaluates checkpoints of runs: reproduces the metrics that the runs reported.

    python -m launch.evaluate --workdir=runs/quick --split=test --checkpoint=best
    python -m launch.evaluate --workdir=runs/a --workdir=runs/b --checkpoint=best,latest,1200 \
        --split=validation,test

Prints a row for each checkpoint and split. Evaluations that cannot be compared, for instance on
other data or under another filter, stand in different tables. Writes each evaluation to
`evaluations/SPLIT-STEP-FILTERS.json` (`test-1200-none-all.json`) in the run's workdir, and the
ranks, target by target, to the `.npz` beside it.

`--config.evaluation.filter_seen=none,all` takes another filter than the run's own.
`--config.data.length=1000` lets the model read more events of a history than in training, and 0 all
of them, as a served model does (`test-1200-none-all-length1000.json`).

`--auc` adds the AUC over the pairs of all users.

All devices share the work, whatever mesh a run was trained on. `--config.mesh.model=2` divides an
item table that is too large for one device, and `--config.mesh.sequence=2` rows that are too long
for one.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from absl import flags

from launch import flags as launch_flags
from launch.program import run_program
from linseqrec.config import Experiment
from linseqrec.config_fields import ConfigError
from linseqrec.config_json import override
from linseqrec.evaluation.result import EvaluationResult
from linseqrec.files import write_json
from linseqrec.runs.comparable import Conditions, comparable, shared_title
from linseqrec.runs.finished import run_names
from linseqrec.runs.results import evaluate_baselines
from linseqrec.runs.tables import METRICS, results_table
from linseqrec.sharding import MeshConfig, make_mesh
from linseqrec.training import saved_run
from linseqrec.training.checkpoint import Checkpoints
from linseqrec.training.run import Run, SplitName

_SPLITS = ("validation", "test")
_CHANGEABLE = ("evaluation.filter_seen", "evaluation.batch_size", "data.length", "mesh.")
_WORKDIRS = flags.DEFINE_multi_string("workdir", None, "Folder of a run.", required=True)
_DATA = launch_flags.define_data()
_SPLIT = flags.DEFINE_list("split", ["test"], "validation, test: which targets are predicted.")
_CHECKPOINTS = flags.DEFINE_list("checkpoint", ["best"], "`best`, `latest`, or steps.")
launch_flags.define_overrides(
    "VALUE of evaluation.filter_seen, evaluation.batch_size, data.length (unset: the run's) or a "
    "mesh's field."
)
_BASELINES = flags.DEFINE_bool(
    "baselines", True, "Whether the tables hold the baselines (and a world's oracle)."
)
_AUC = flags.DEFINE_bool(
    "auc", False, "Also the pooled AUC; every scorer then scores the whole catalogue once more."
)
flags.register_validator(
    "split",
    lambda names: len(names) > 0 and set(names) <= set(_SPLITS),
    message=f"choose among {', '.join(_SPLITS)}",
)
flags.register_validator("checkpoint", bool, message="name at least one checkpoint")


@dataclasses.dataclass
class _Table:
    """Evaluations that can be compared.

    Attributes:
      conditions: What their metrics depend on, besides the model.
      title: The data, the split, the targets and the filters.
      baselines: For each length of rows, summaries by name.
      rows: The runs' summaries by label.
      written: Lines on the files that were written.
    """

    conditions: Conditions
    title: str
    baselines: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)
    rows: dict[str, Any] = dataclasses.field(default_factory=dict)
    written: list[str] = dataclasses.field(default_factory=list)


def main(_: list[str]) -> None:
    folders = list(dict.fromkeys(Path(folder) for folder in _WORKDIRS.value))
    tables: list[_Table] = []
    for folder, name in zip(folders, run_names(folders), strict=True):
        trained = saved_run.read_experiment(folder)
        run = _run(folder, trained)
        evaluations = list(_evaluate(run, folder))
        several = len({step for step, _, _ in evaluations}) > 1
        for step, split, result in evaluations:
            table = _table(tables, run, split, result)
            table.rows[f"{name}, step {step}" if several else name] = result.summary()
            filters = "-".join(result.protocol["filter_seen"])
            length = run.experiment.data.length
            other = "" if length == trained.data.length else f"-length{length}"
            stem = folder / "evaluations" / f"{split}-{step}-{filters}{other}"
            result.save(stem.with_suffix(".npz"))
            summaries = {run.experiment.name: result.summary()} | table.baselines[length]
            write_json(stem.with_suffix(".json"), {"step": step} | summaries)
            table.written.append(f"checkpoint {step}; written to {stem}.json and .npz")
    for table in tables:
        if len(tables) > 1:
            print(f"{table.title}\n")
        metrics = (*METRICS, "AUC") if _AUC.value else METRICS
        baselines = {name: each for own in table.baselines.values() for name, each in own.items()}
        print(results_table(table.rows | baselines, metrics))
        print("\n".join(table.written), end="\n\n" if len(tables) > 1 else "\n")


def _run(folder: Path, trained: Experiment) -> Run:
    given = launch_flags.overrides(trained)
    for field in given:
        if not field.startswith(_CHANGEABLE):
            changeable = "evaluation.filter_seen, evaluation.batch_size, data.length and the mesh"
            raise ConfigError(f"--config.{field}: an evaluation may change {changeable} only")
    # The stride is one of training, and would not fit every length.
    data = dataclasses.replace(trained.data, stride=None)
    experiment = override(dataclasses.replace(trained, mesh=MeshConfig(), data=data), given)
    return Run.of(
        experiment,
        saved_run.load_data(folder, _DATA.value),
        mesh=make_mesh(experiment.mesh),
        trains=False,
        auc=_AUC.value,
    )


def _evaluate(run: Run, folder: Path) -> Iterator[tuple[int, SplitName, EvaluationResult]]:
    """Evaluates each requested step and split once: "best" and "latest" may be one step."""
    folder = folder / "checkpoints"
    with Checkpoints(folder, read_only=True, shapes=run.step.shapes) as checkpoints:
        for step in dict.fromkeys(map(checkpoints.resolve, _CHECKPOINTS.value)):
            variables = checkpoints.restore_variables(step, run.model, run.experiment.optimizer)
            for split in dict.fromkeys(cast(list[SplitName], _SPLIT.value)):
                yield step, split, run.evaluate(variables, split)


def _table(tables: list[_Table], run: Run, split: SplitName, result: EvaluationResult) -> _Table:
    """The table of comparable evaluations; appends a new one if there is none."""
    conditions = Conditions.of_run(run, result.protocol)
    table = next((each for each in tables if comparable(each.conditions, conditions)), None)
    if table is None:
        filters = ",".join(result.protocol["filter_seen"])
        title = shared_title([run.experiment], run.source.split.name)
        title += f"; {split} targets; filter_seen={filters}"
        table = _Table(conditions, title)
        tables.append(table)
    # One of the baselines reads as many events as the model.
    if (length := run.experiment.data.length) not in table.baselines:
        evaluated = evaluate_baselines(run, split) if _BASELINES.value else {}
        table.baselines[length] = {name: each.summary() for name, each in evaluated.items()}
    return table


if __name__ == "__main__":
    run_program(main)
