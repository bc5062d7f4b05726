r"""Evaluates checkpoints of runs: reproduces the metrics that the runs reported.

    python -m launch.evaluate --workdir=runs/quick --split=test --checkpoint=best
    python -m launch.evaluate --workdir=runs/a --workdir=runs/b --checkpoint=best,latest,1200 \
        --split=validation,test

Each is a row of one table; runs on other data, another split or filter have a table of their own.
`--config.evaluation.filter_seen=none,all` takes another filter than the run's own. All devices
share the work, whatever mesh a run was trained on. `--config.mesh.model=2` divides a table that is
too large for one device, and `--config.mesh.sequence=2` rows that are too long for one.
Writes each one's `evaluations/SPLIT-STEP-FILTERS.json` (`test-1200-none-all.json`) and the
per-target ranks beside it, in its workdir.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from absl import flags

from launch import flags as launch_flags
from launch.program import run_program
from linseqrec.config_checks import ConfigError
from linseqrec.config_fields import override
from linseqrec.data.card import differing_data
from linseqrec.evaluation.result import EvaluationResult
from linseqrec.evaluation.table import results_table
from linseqrec.sharding import MeshConfig, make_mesh
from linseqrec.training import workdir
from linseqrec.training.checkpoint import Checkpoints
from linseqrec.training.results import data_title, references
from linseqrec.training.run import Run, SplitName

_SPLITS = ("validation", "test")
_CHANGEABLE = ("evaluation.filter_seen", "evaluation.batch_size", "mesh.")
_WORKDIRS = flags.DEFINE_multi_string("workdir", None, "Folder of a run.", required=True)
_DATA = launch_flags.define_data()
_SPLIT = flags.DEFINE_list("split", ["test"], "validation, test: which targets are predicted.")
_CHECKPOINTS = flags.DEFINE_list("checkpoint", ["best"], "`best`, `latest`, or steps.")
launch_flags.define_overrides(
    "VALUE of evaluation.filter_seen, evaluation.batch_size (unset: the run's) or a mesh's field."
)
_FLOORS = flags.DEFINE_bool("floors", True, "Whether floors (and a world's oracle) are shown too.")
flags.register_validator(
    "split",
    lambda names: len(names) > 0 and set(names) <= set(_SPLITS),
    message=f"choose among {', '.join(_SPLITS)}",
)
flags.register_validator("checkpoint", bool, message="name at least one checkpoint")


@dataclasses.dataclass
class _Table:
    """Evaluations that may stand beside each other: of one data set, split and protocol.

    Attributes:
      card: The card of their data.
      protocol: What else they share.
      title: What the data, the split and the filter are.
      floors: What frames them, by name.
      rows: The runs' own, by label.
      written: What was written, a line each.
    """

    card: dict[str, Any]
    protocol: dict[str, Any]
    title: str
    floors: dict[str, Any]
    rows: dict[str, Any] = dataclasses.field(default_factory=dict)
    written: list[str] = dataclasses.field(default_factory=list)


def main(_: list[str]) -> None:
    folders = list(dict.fromkeys(Path(folder) for folder in _WORKDIRS.value))
    tables: list[_Table] = []
    for folder, name in zip(folders, workdir.run_names(folders), strict=True):
        run = _run(folder)
        evaluated = list(_evaluate(run, folder))
        several = len({step for step, _, _ in evaluated}) > 1
        for step, split, result in evaluated:
            table = _table(tables, run, split, result)
            filters = "-".join(result.protocol["filter_seen"])
            stem = folder / "evaluations" / f"{split}-{step}-{filters}"
            table.rows[f"{name}, step {step}" if several else name] = result.summary()
            result.save(stem.with_suffix(".npz"))
            own = {run.experiment.name: result.summary()}
            workdir.write_json(stem.with_suffix(".json"), {"step": step} | own | table.floors)
            table.written.append(f"checkpoint {step}; written to {stem}.json and .npz")
    for table in tables:
        if len(tables) > 1:
            print(f"{table.title}\n")
        print(results_table(table.rows | table.floors))
        print("\n".join(table.written), end="\n\n" if len(tables) > 1 else "\n")


def _run(folder: Path) -> Run:
    experiment = workdir.read_experiment(folder)
    given = launch_flags.overrides(experiment)
    for field in given:
        if not field.startswith(_CHANGEABLE):
            changeable = "evaluation.filter_seen, evaluation.batch_size and the mesh"
            raise ConfigError(f"--config.{field}: an evaluation may change {changeable} only")
    experiment = override(dataclasses.replace(experiment, mesh=MeshConfig()), given)
    return Run.of(
        experiment,
        workdir.load_data(folder, _DATA.value),
        mesh=make_mesh(experiment.mesh),
        trains=False,
    )


def _evaluate(run: Run, folder: Path) -> Iterator[tuple[int, SplitName, EvaluationResult]]:
    """Each checkpoint and split asked for, once: "best" and "latest" may be one step."""
    folder = folder / "checkpoints"
    with Checkpoints(folder, read_only=True, shapes=run.shapes) as checkpoints:
        for step in dict.fromkeys(map(checkpoints.resolve, _CHECKPOINTS.value)):
            params = checkpoints.restore_params(step, run.initial_params)
            for split in dict.fromkeys(cast(list[SplitName], _SPLIT.value)):
                yield step, split, run.evaluate(params, split)


def _table(tables: list[_Table], run: Run, split: SplitName, result: EvaluationResult) -> _Table:
    """The table that an evaluation may stand in, a new one if there is none yet."""
    card = run.source.dataset.card
    protocol = {key: value for key, value in result.protocol.items() if key != "max_length"}
    protocol["division"] = run.source.split.description
    for table in tables:
        if table.protocol == protocol and not differing_data(table.card, card):
            return table
    tables.append(_Table(card, protocol, _title(run, result), _floors(run, split)))
    return tables[-1]


def _title(run: Run, result: EvaluationResult) -> str:
    return f"{data_title(run)}; {result.protocol['split']} targets; filter_seen=" + ",".join(
        result.protocol["filter_seen"]
    )


def _floors(run: Run, split: SplitName) -> dict[str, Any]:
    if not _FLOORS.value:
        return {}
    return {name: floor.summary() for name, floor in references(run, split).items()}


if __name__ == "__main__":
    run_program(main)
